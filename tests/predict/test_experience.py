"""What searches taught: kept for each machine, as long as it was predicted from the same probe."""

from dataclasses import replace
from pathlib import Path

from autotune.predict.experience import MOST, Taught, keep, recall
from tests.core.examples import A100, CPU

HERE = replace(CPU, measured_at="today")


def taught(name: str, step_s: float = 1.0) -> Taught:
    return Taught(name=name, spent=(0.1, 0.5, 0.3, 0.1), step_s=step_s)


def test_trials_are_kept_once_each(tmp_path: Path) -> None:
    """A later one of the same name takes the other's place; the latest are kept."""
    keep(tmp_path, HERE, [taught("a"), taught("b")])
    keep(tmp_path, HERE, [taught("a", 2.0)])
    assert {each.name: each.step_s for each in recall(tmp_path, HERE)} == {"a": 2.0, "b": 1.0}
    keep(tmp_path, HERE, [taught(str(n)) for n in range(MOST - 1)])
    assert [each.name for each in recall(tmp_path, HERE)] == ["a", *(str(n) for n in range(MOST - 1))]
    keep(tmp_path, HERE, [taught(str(n)) for n in range(MOST)])
    assert [each.name for each in recall(tmp_path, HERE)] == [str(n) for n in range(MOST)]


def test_another_machine_or_probe_knows_nothing_of_it(tmp_path: Path) -> None:
    """Nor does one whose file is damaged."""
    keep(tmp_path, HERE, [taught("a")])
    assert recall(tmp_path, A100) == ()
    assert recall(tmp_path, replace(HERE, measured_at="tomorrow")) == ()
    [file] = (tmp_path / "hardware").iterdir()
    file.write_text("{")
    assert recall(tmp_path, HERE) == ()


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    """A search that predicted no time leaves no file."""
    keep(tmp_path, HERE, [])
    assert not list(tmp_path.iterdir())
