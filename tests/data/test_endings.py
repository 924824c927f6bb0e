"""Endings: a training that cannot teach the model to stop says so, loudly, each time."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from autotune.core.recipe import Recipe
from autotune.core.workload import ModelFacts
from autotune.data.describe import describe_data
from autotune.data.tokenization import TokenizationRequest, tokenize
from autotune.errors import UsageError
from autotune.models.find import resolve_model
from tests.data.test_tokenization import ASSISTANT, STRINGS, TEXT, TURNS, USER, request_for, write

NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
# With marks around the answer alone, so that assistant_only_loss leaves the end of the turn out.
END_NOT_LEARNED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}{% endfor %}"
)
NONE_ENDS = "WARNING: no row has a label that ends a turn"


@pytest.fixture(scope="module")
def tiny(home: Path) -> ModelFacts:
    return resolve_model("tiny", home=home, progress=lambda line: None)


def changed(tiny: ModelFacts, out: Path, *, template: str | None = None, **settings: str) -> str:
    """The model with another chat template, or other values in its tokenizer_config.json. Returns its path."""
    shutil.copytree(tiny.path, out, ignore=shutil.ignore_patterns("sealed*"))
    if template is not None:
        (out / "chat_template.jinja").write_text(template)
    file = out / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return str(out)


def notes(request: TokenizationRequest, out: Path) -> list[str]:
    tokenize(request, out)
    found: list[str] = json.loads((out / "facts.json").read_text())["notes"]
    return found


@pytest.mark.parametrize(
    "row", [TEXT, STRINGS, {"messages": TURNS}, {"prompt": [USER], "completion": [ASSISTANT]}], ids=str
)
def test_a_usual_training_learns_to_stop(tiny: ModelFacts, tmp_path: Path, row: dict[str, object]) -> None:
    """TRL writes eos behind strings, and the template ends its turns with it."""
    assert notes(request_for(tiny, write(tmp_path / "a.jsonl", [row])), tmp_path) == []


def test_a_template_without_an_end_is_a_warning(tiny: ModelFacts, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path / "model", template=NO_END)
    (note,) = notes(request_for(model, write(tmp_path / "a.jsonl", [{"messages": TURNS}])), tmp_path)
    assert note.startswith(NONE_ENDS)
    assert "<|im_end|>" in note


def test_an_end_that_is_not_learned_is_a_warning(tiny: ModelFacts, tmp_path: Path) -> None:
    """It is written, but no label holds it; with labels on all tokens it is learned."""
    model = changed(tiny, tmp_path / "model", template=END_NOT_LEARNED)
    data = write(tmp_path / "a.jsonl", [{"messages": TURNS}])
    (note,) = notes(request_for(model, data, assistant_only_loss=True), tmp_path)
    assert note.startswith(NONE_ENDS)
    assert notes(request_for(model, data), tmp_path / "model") == []


def test_rows_without_an_end_are_counted(tiny: ModelFacts, tmp_path: Path) -> None:
    """Here the template ends only long talks."""
    template = NO_END + "{{ '<|im_end|>' if messages | length > 2 else '' }}"
    model = changed(tiny, tmp_path / "model", template=template)
    data = write(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": [USER, ASSISTANT]}])
    (note,) = notes(request_for(model, data), tmp_path)
    assert note.startswith("WARNING: only 1 of 2 rows has a label that ends a turn")


def test_an_end_at_which_the_model_would_not_stop_is_named(tiny: ModelFacts, tmp_path: Path) -> None:
    """As in base models with a chat template: turns end with <|im_end|>, and eos is another token."""
    model = changed(tiny, tmp_path / "model", eos_token="<|endoftext|>")
    (Path(model) / "generation_config.json").unlink(missing_ok=True)
    (note,) = notes(request_for(model, write(tmp_path / "a.jsonl", [{"messages": TURNS}])), tmp_path)
    assert note.startswith("turns end with <|im_end|>, which is neither eos (<|endoftext|>) nor in the generation")


def test_the_warning_comes_each_time(tiny: ModelFacts, tmp_path: Path) -> None:
    """Also when the rows are in the cache."""
    facts = resolve_model(changed(tiny, tmp_path / "m", template=NO_END), home=tmp_path, progress=lambda line: None)
    data = write(tmp_path / "a.jsonl", [{"messages": TURNS}])
    for _ in range(2):
        lines: list[str] = []
        describe_data(facts, data=str(data), columns={}, recipe=Recipe(), seed=0, home=tmp_path, progress=lines.append)
        assert sum(line.startswith(NONE_ENDS) for line in lines) == 1


def test_a_pad_token_without_an_embedding_is_refused(tiny: ModelFacts, tmp_path: Path) -> None:
    """No row holds it, and yet it reaches the model in every batch that has padding."""
    model = changed(tiny, tmp_path / "model", pad_token="<|new|>")
    vocabulary = len(AutoTokenizer.from_pretrained(tiny.path))
    request = request_for(model, write(tmp_path / "a.jsonl", [TEXT]), vocabulary=vocabulary)
    with pytest.raises(UsageError, match=r"rows are padded with token \d+ \('<\|new\|>'\), but the model has only"):
        tokenize(request, tmp_path)


def test_a_template_that_changes_the_answer_hides_no_warning(tiny: ModelFacts, tmp_path: Path) -> None:
    """What stands behind the answer is not known then, so only eos counts as an end."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m['content'] | upper }}{% endfor %}"
    model = changed(tiny, tmp_path / "model", template=template)
    (note,) = notes(request_for(model, write(tmp_path / "a.jsonl", [{"messages": TURNS}])), tmp_path)
    assert note.startswith(NONE_ENDS)


def test_rows_are_judged_again_for_another_generation_configuration(tiny: ModelFacts, tmp_path: Path) -> None:
    """The user did what the note asked for, and it is gone."""
    model = Path(changed(tiny, tmp_path / "m", eos_token="<|endoftext|>"))
    (model / "generation_config.json").unlink(missing_ok=True)
    data = write(tmp_path / "a.jsonl", [{"messages": TURNS}])
    said = []
    for _ in range(2):
        facts = resolve_model(str(model), home=tmp_path, progress=lambda line: None)
        lines: list[str] = []
        describe_data(facts, data=str(data), columns={}, recipe=Recipe(), seed=0, home=tmp_path, progress=lines.append)
        said.append(any(line.startswith("turns end with") for line in lines))
        end = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("<|im_end|>")
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    assert said == [True, False]
