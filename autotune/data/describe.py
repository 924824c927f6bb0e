"""Describe a workload: find the model, read and tokenize the data once, and measure the lengths.

Tokenized rows are kept under `home`, keyed by the data's content, the tokenizer, the options and the versions of the
libraries. Trials, runs and the next description reuse them. Leaves out how rows are read (source.py), what they mean
(forms.py) and how they are tokenized (tokenization.py).
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune import cache
from autotune.child import Unanswered, ask
from autotune.core.arithmetic import NORMAL_975
from autotune.core.lengths import Lengths, Spans
from autotune.core.recipe import Recipe
from autotune.core.units import count_of
from autotune.core.workload import DataFacts, ModelFacts, Workload
from autotune.data.source import Source, locate_data, survey
from autotune.data.tokenization import TokenizationRequest, tokenize
from autotune.errors import AutotuneError
from autotune.models.checkpoint import check_weights
from autotune.models.find import fetch_weights, resolve_model, tokenizer_fingerprint
from autotune.models.target_modules import check_target_modules

Progress = Callable[[str], None]

LAYOUT = 6  # raise it when what tokenization writes changes
SAMPLED_ABOVE = 200_000  # rows; tokenizing them takes about two minutes on two cores
LONGEST_SHARE = 0.001  # of a sample; the rows with most characters, because they make the worst batch
PROGRESS_SECONDS = 1.0
BAR = re.compile(
    r"(?P<what>\w[^:]*?)(?: (?:for |from )?train dataset)?(?: \(num_proc=\d+\))?:"
    r"\s+\d+%.*\| (?P<done>\d+)/(?P<all>\d+) "
)
WARNING = re.compile(r"The (chat template|tokenized prompt).*")  # TRL's warnings of masks that may be wrong


def describe(
    *,
    model: str,
    data: str,
    columns: Mapping[str, str],
    recipe: Recipe,
    seed: int,
    home: Path,
    progress: Progress,
    most_rows: int | None = SAMPLED_ABOVE,
    split: str | None = None,
) -> Workload:
    """Find model and data, tokenize the data as TRL does, and return the facts of both.

    most_rows: if there are more, this many are drawn with `seed` and tokenized, always with the rows of most characters
    among them. None tokenizes all rows, as training needs. split: of the data; None: `train`, or the only one. Raises
    UsageError for a model or data that cannot be trained.
    """
    home = home.absolute()
    facts = fetch_weights(resolve_model(model, home=home, progress=progress), progress=progress)
    check_weights(facts, home=home, progress=progress)
    if recipe.method != "full":
        check_target_modules(facts, recipe.lora_target_modules, progress=progress)
    found = describe_data(
        facts,
        data=data,
        columns=columns,
        recipe=recipe,
        seed=seed,
        home=home,
        progress=progress,
        most_rows=most_rows,
        split=split,
    )
    return Workload(model=facts, data=found, recipe=recipe)


def describe_data(
    facts: ModelFacts,
    *,
    data: str,
    columns: Mapping[str, str],
    recipe: Recipe,
    seed: int,
    home: Path,
    progress: Progress,
    most_rows: int | None = SAMPLED_ABOVE,
    split: str | None = None,
) -> DataFacts:
    """Find the data, tokenize it for a model as TRL does, and return its facts.

    facts: of the model, whose tokenizer lies at `path`; its weights are not needed. The rest is as in `describe`.
    """
    source = locate_data(data, columns, progress, split=split)
    options = {
        "layout": LAYOUT,
        "data": source.content_hash,
        "columns": dict(columns),
        "tokenizer": tokenizer_fingerprint(facts.path),
        "vocabulary": facts.vocabulary,
        "generation": _generation(facts.path),
        "assistant_only_loss": recipe.assistant_only_loss,
        "completion_only_loss": recipe.completion_only_loss,
        "versions": {name: version(name) for name in ("trl", "transformers", "tokenizers")},
    }
    whole = home / "tokenized" / _hash(options)
    sampled = home / "tokenized" / _hash({**options, "most_rows": most_rows, "seed": seed})
    kept = next((directory for directory in (whole, sampled) if cache.is_whole(directory)), None)
    if kept is None:
        found = survey(source, progress)
        indices = _sample(found.characters, most_rows, seed)
        kept = whole if indices is None else sampled
        request = TokenizationRequest(
            model=facts.path,
            vocabulary=facts.vocabulary,
            source=source,
            survey=found,
            assistant_only_loss=recipe.assistant_only_loss,
            completion_only_loss=recipe.completion_only_loss,
            indices=indices,
        )
        rows = len(found.characters) if indices is None else len(indices)
        progress(f"tokenizing {count_of(rows, 'row')} of {source.name}")
        cache.build(kept, lambda fresh: _tokenize_apart(request, fresh, progress))
    for note in json.loads((kept / "facts.json").read_text(encoding="utf-8"))["notes"]:
        progress(note)
    return _data_facts(kept, source)


def _generation(path: str) -> str | None:
    """The generation configuration of a model in a directory, which says where it stops; None without one."""
    file = Path(path) / "generation_config.json"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _data_facts(directory: Path, source: Source) -> DataFacts:
    facts = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    with np.load(directory / "lengths.npz") as kept:
        spans = Spans(counts=kept["counts"], starts=kept["starts"], ends=kept["ends"])
        lengths = Lengths(tokens=kept["tokens"], spans=spans)
    rows, tokenized = facts["rows_in_file"], facts["rows_tokenized"]
    return DataFacts(
        path=source.path,
        name=source.name,
        form=facts["form"],
        lengths=lengths,
        rows_in_file=rows,
        coverage_error=0.0 if tokenized == rows else _error_of_mean(lengths.tokens, tokenized / rows),
        tokenized_path=str(directory / "rows"),
        fingerprint=_hash({"data": source.content_hash, "columns": dict(source.columns)}),
        share_tokenized=tokenized / rows,
        split=source.split,
    )


def _error_of_mean(tokens: NDArray[np.int64], share: float) -> float:
    """Return the half-width of the 95 % interval of the mean length, as a share of it.

    share: of all rows that were tokenized, drawn without replacement.
    """
    finite = 1 - share
    return float(NORMAL_975 * tokens.std(ddof=1) * np.sqrt(finite / len(tokens)) / tokens.mean())


def _sample(characters: NDArray[np.int64], most_rows: int | None, seed: int) -> NDArray[np.int64] | None:
    """Choose `most_rows` rows, ascending: those with most characters, and others at random. None chooses them all."""
    if most_rows is None or len(characters) <= most_rows:
        return None
    longest = np.argsort(-characters, kind="stable")[: math.ceil(LONGEST_SHARE * most_rows)]
    others = np.setdiff1d(np.arange(len(characters)), longest)
    drawn = np.random.default_rng(seed).choice(others, most_rows - len(longest), replace=False)
    return np.sort(np.concatenate([longest, drawn]))


def _tokenize_apart(request: TokenizationRequest, out: Path, progress: Progress) -> None:
    """Tokenize in a process of its own and pass on its progress. Raises UsageError with what tokenization refuses."""
    variables = {
        "CUDA_VISIBLE_DEVICES": "",  # tokenizing must not claim memory that the trials measure
        "HF_HUB_OFFLINE": "1",  # every file that it reads was fetched before
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        ask(tokenize, request, out, variables=variables, on_output=_Output(progress).read)
    except Unanswered as ended:
        code = "" if ended.reason else f" (exit code {ended.code})"
        error = AutotuneError(f"tokenizing {request.source.name} failed{code}: {ended} (debug=true shows more)")
        error.details = ended.last_lines
        raise error from None


class _Output:
    """Turns the progress bars and warnings of tokenization into lines of progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told_at = time.monotonic()

    def read(self, line: str) -> None:
        """Follow one line: a state of a bar at most once in PROGRESS_SECONDS, a warning of TRL always."""
        if bar := BAR.match(line):
            if time.monotonic() - self._told_at >= PROGRESS_SECONDS:
                self._told_at = time.monotonic()
                self._progress(f"{bar['what'].lower()}: {int(bar['done']):,} of {count_of(int(bar['all']), 'row')}")
        elif warning := WARNING.search(line):
            self._progress(f"TRL warns: {warning[0]}")


def _hash(facts: Mapping[str, object]) -> str:
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
