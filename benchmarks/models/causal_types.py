"""Which types of causal language model autotune trains, and what it says of the others.

    python -m benchmarks.models.causal_types [--only TYPE ...] [--processes N] [--out FILE] [--json]

Every type of causal language model in transformers is saved as a directory: a configuration as small as it may be,
random weights, and the tokenizer of `model=tiny`. Then autotune takes the directory as a user's `model=`. It finds the
model, checks its files, and judges a candidate of each kind in TRAININGS. What it does not refuse trains one optimizer
step, as a worker of autotune trains it. All rows of the data are longer than the model's limit, or than ROW tokens
where the limit is higher, and are cut there.

The outcome of a training is `trains`, `refused` (with the words) or `crashes` (with the error). The outcome of a type:
    trains    each training trains or is refused
    refused   the model itself is refused
    crashes   a training crashed, lost its weights to NaN, or took too long
    unmade    transformers cannot make or save such a small model, so nothing was tried
`sees_ahead` says whether the logits of a position change with a later token. No type that trains may do that.

Each type has a process of its own, so that a crash is a row and not the end.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed, Diverged, OutOfMemory
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context
from autotune.core.space.legality import first_broken
from autotune.core.workload import DataFacts, ModelFacts, Workload
from autotune.data.describe import describe_data
from autotune.demo import TINY
from autotune.errors import UsageError, first_line
from autotune.machine.installed import installed
from autotune.models.checkpoint import check_weights
from autotune.models.find import resolve_model
from autotune.models.target_modules import check_target_modules
from autotune.train import worker
from autotune.train.fork_server import start_fork_server
from autotune.train.task import Compare, Task, environment
from benchmarks.command import Answer, add_out, command, count, say
from benchmarks.machines import plain_cpu
from benchmarks.rows import RESULTS, Row, RowFile, versions
from benchmarks.search.documents_apart import NAMES, POSITIONS, SPECIAL, model_types, shrunk

ROW = 64  # tokens of a row where the model takes more
VOCABULARY = 1152  # of the tokenizer of `model=tiny`
LIMIT_S = 400.0  # seconds for all trainings of a type
SAMPLES = 4  # of a step
OUTCOMES = ("trains", "refused", "crashes", "unmade")

WORDS = "The sea was calm in the morning and rough in the evening, so the boats came home early. "
QUESTION, REPLY = {"role": "user", "content": WORDS * 2}, {"role": "assistant", "content": WORDS * 8}
DATA: Mapping[str, Mapping[str, Any]] = {
    "text": {"text": WORDS * 12},
    "messages": {"messages": [{**QUESTION, "content": "Hi"}, REPLY]},
}

PLAIN = Candidate(
    max_length=ROW,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=SAMPLES // 2,
    method="full",
    attention="eager",
    mixed_precision="no",
    torch_threads=1,
)
# What each training changes in PLAIN.
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "sdpa": {"attention": "sdpa"},
    "flex_attention": {"attention": "flex_attention"},
    "flash_attention_2": {"attention": "flash_attention_2"},
    "lora": {"method": "lora"},
    "bf16": {"mixed_precision": "bf16"},
    "checkpointing": {"checkpointing": "full"},
    "selective": {"checkpointing": "selective", "attention": "sdpa"},
    "every_n": {"checkpointing": "every_n", "every_n_layers": 2},
    "packing": {"batching": "pack_bfd"},
    "assistant": {},
}

# Limits under names that benchmarks/search/documents_apart.py does not shrink, and what single types need.
LIMITS = "max_seq_len seq_length max_target_positions max_decoder_position_embeddings max_sequence_length"
POSITIONED = dict.fromkeys(LIMITS.split(), POSITIONS)
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "zamba": {"num_hidden_layers": 3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a process is asked: to try a type with tokenized data. data: by the names of DATA."""

    model_type: str
    data: Mapping[str, DataFacts]
    folder: str


def options(parser: argparse.ArgumentParser) -> None:
    """Name the types and the file of rows."""
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types, such as llama")
    parser.add_argument("--processes", type=count, default=1, metavar="N", help="types tried at once (default: 1)")
    add_out(parser, RESULTS / "causal_types.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Try the types that have no row of these versions yet; return all rows of these versions, types by outcome."""
    known = model_types()
    if wrong := sorted({*(arguments.only or ())} - {*known}):
        raise UsageError(*(f"--only: got {each}, expected a type of causal language model" for each in wrong))
    file = RowFile(path=arguments.out, about={"device": "cpu", "versions": versions()})
    done = {row["model_type"] for row in file.own()}
    asked = [each for each in arguments.only or known if each not in done]
    if asked:
        with tempfile.TemporaryDirectory() as folder:
            data = tokenized(Path(folder))
            for row in tried(asked, data, Path(folder), arguments.processes):
                file.add(row)
                say(f"{row['model_type']}: {row['outcome']} {row.get('words', '')}")
    rows = file.own()
    by_outcome = {name: sorted(row["model_type"] for row in rows if row["outcome"] == name) for name in OUTCOMES}
    return {
        "rows": rows,
        "types": len(rows),
        **{name: len(types) for name, types in by_outcome.items()},
        **{f"which {name}": types for name, types in by_outcome.items() if name != "trains"},
    }


def tokenized(folder: Path) -> dict[str, DataFacts]:
    """Tokenize the data with the tokenizer that all types get, as a run does."""
    tiny = resolve_model("tiny", home=folder / "home", progress=say)
    found = {}
    for name, row in DATA.items():
        file = folder / f"{name}.jsonl"
        file.write_text(f"{json.dumps(row)}\n" * (4 * SAMPLES), encoding="utf-8")
        found[name] = describe_data(
            tiny, data=str(file), columns={}, recipe=recipe_of(name), seed=0, home=folder / "home", progress=say
        )
    return found


def recipe_of(data: str) -> Recipe:
    """Return the recipe: labels on all tokens, or on the assistant's alone."""
    return Recipe(effective_batch_size=SAMPLES, assistant_only_loss=data == "messages")


def tried(asked: Sequence[str], data: Mapping[str, DataFacts], folder: Path, processes: int) -> Iterator[Row]:
    """Try types, each in a process of its own, and yield their rows as they come."""
    context = start_fork_server(environment(True, "cpu", None))
    waiting, running = list(asked), dict[Any, tuple[str, Any, float]]()
    while waiting or running:
        while waiting and len(running) < processes:
            ours, theirs = context.Pipe()
            place = folder / (name := waiting.pop(0))
            question = Question(model_type=name, data=data, folder=str(place))
            process = context.Process(target=serve, args=(question, theirs), name=f"causal-type-{name}")
            process.start()
            theirs.close()
            running[ours] = (name, process, time.monotonic())
        ready = set(wait(list(running), timeout=1.0))
        for pipe, (name, process, begun) in list(running.items()):
            late = time.monotonic() - begun > LIMIT_S
            if pipe not in ready and not late:
                continue
            row: Row = {"outcome": "crashes", "words": f"took more than {LIMIT_S:.0f} s"}
            if pipe in ready:
                try:
                    row = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    row = {"outcome": "crashes", "words": f"the process died with exit code {process.exitcode}"}
            process.kill()
            process.join()
            pipe.close()
            shutil.rmtree(folder / name, ignore_errors=True)
            del running[pipe]
            yield {"model_type": name, **row}


def serve(question: Question, pipe: Connection) -> None:
    """Try a type, and send its row. Runs in a process of its own."""
    folder = Path(question.folder)
    folder.mkdir()
    worker._redirect_output(str(folder / "log.txt"))
    pipe.send(examine(question))


def examine(question: Question) -> Row:
    """Make a model of a type, take it as a user's, and try every training."""
    import torch

    torch.set_num_threads(1)
    directory = Path(question.folder) / "model"
    try:
        config = small_config(question.model_type)
        save_model(config, directory)
    except Exception as error:  # each class raises its own errors over a configuration that it cannot take
        return {"outcome": "unmade", "words": f"{type(error).__name__}: {first_line(error)}"[:300]}
    home = Path(question.folder) / "home"
    try:
        facts = resolve_model(str(directory), home=home, progress=say)
        check_weights(facts, home=home, progress=say)
        check_target_modules(facts, Recipe().lora_target_modules)
    except UsageError as error:
        return {"outcome": "refused", "words": str(error).replace(str(directory), "DIR")}
    except Exception as error:
        return {"outcome": "crashes", "words": f"{type(error).__name__}: {first_line(error)}"[:300]}
    row: Row = {"class": json.loads((directory / "config.json").read_text())["architectures"][0], "limit": facts.limit}
    row["attention"] = list(facts.attention)
    row["trainings"] = {name: train(name, facts, question) for name in TRAININGS}
    row["sees_ahead"] = sees_ahead(directory)
    kinds = {each["outcome"] for each in row["trainings"].values()}
    whole = "crashes" if "crashes" in kinds else "trains" if "trains" in kinds else "refused"
    if whole == "trains" and row["sees_ahead"] is not False:
        whole = "crashes"
        row["words"] = "would be trained on tokens that it sees"
    errors = [f"{n}: {each['words']}" for n, each in row["trainings"].items() if each["outcome"] == "crashes"]
    return {"outcome": whole, **({"words": "; ".join(errors)} if errors else {}), **row}


def small_config(model_type: str) -> Any:
    """Return the configuration of a type, as small as it may be, with the vocabulary of the tokenizer."""
    from transformers import AutoConfig

    try:
        defaults = AutoConfig.for_model(model_type).to_dict()
    except Exception:  # a type whose defaults contradict each other
        defaults = {}
    small = {**shrunk(defaults), **SPECIAL.get(model_type, {}), **NEEDED.get(model_type, {})}
    return AutoConfig.for_model(model_type, **adjusted(small, defaults))


def adjusted(small: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give a small configuration, and those inside it, the tokenizer's vocabulary and few positions."""
    vocabularies = NAMES[0][1].split()
    found = {name: VOCABULARY if name in vocabularies else value for name, value in small.items()}
    found |= {name: number for name, number in POSITIONED.items() if isinstance(defaults.get(name), int)}
    for name, value in small.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict) and "model_type" in defaults[name]:
            found[name] = adjusted(value, defaults[name])
    return found


def save_model(config: Any, directory: Path) -> None:
    """Save a model of random weights as a user would have it, with the tokenizer of `model=tiny`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    for path in TINY.iterdir():
        if path.name != "config.json":
            shutil.copyfile(path, directory / path.name)


def train(name: str, facts: ModelFacts, question: Question) -> Row:
    """Judge a training, and train one step unless it is refused."""
    data = "messages" if name == "assistant" else "text"
    recipe = replace(recipe_of(data), max_steps=1)
    row = min(ROW, facts.limit or ROW)
    candidate = replace(PLAIN, max_length=row, **TRAININGS[name])
    if candidate.packs:
        candidate = replace(candidate, packed_length=row)
    workload = Workload(model=facts, data=question.data[data], recipe=replace(recipe, method=candidate.method))
    context = Context(installed=installed(), hardware=plain_cpu(), workload=workload)
    candidate = replace(candidate, gradient_accumulation_steps=context.accumulation(candidate) or 1)
    if rule := first_broken(candidate, context):
        return {"outcome": "refused", "words": rule.reason}
    folder = Path(question.folder) / name
    folder.mkdir()
    task = Task(
        candidate=candidate,
        recipe=recipe,
        model_path=facts.path,
        not_adapted=facts.not_adapted,
        tokenized_path=question.data[data].tokenized_path,
        seed=0,
        device="cpu",
        output_dir=str(folder),
        log_path=str(Path(question.folder) / "log.txt"),
        goal=Compare(steps=1),
    )
    outcome = worker.perform(task, Silent())  # type: ignore[arg-type]
    if isinstance(outcome, Crashed | OutOfMemory):
        return {"outcome": "crashes", "words": outcome.message[:300]}
    if isinstance(outcome, Diverged):
        return {"outcome": "crashes", "words": f"the loss is {outcome.loss}"}
    return {"outcome": "trains"}


class Silent:
    """A pipe that nobody reads."""

    def send(self, event: Any) -> None:
        """Forget an event."""


def sees_ahead(directory: Path) -> bool | None:
    """Tell whether a model's logits change with a later token; None if the model cannot be run by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    with contextlib.suppress(Exception), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
        tokens = torch.arange(5, 45)[None]
        other = tokens.clone()
        other[0, 30:] += 100
        first, second = (model(input_ids=each, use_cache=False).logits[0, :30] for each in (tokens, other))
        return not torch.allclose(first, second, atol=1e-4 * float(first.abs().max()))
    return None


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
