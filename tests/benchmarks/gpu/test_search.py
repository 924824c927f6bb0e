"""benchmarks/gpu/search.py: a search beside what people start from goes on where its budget ended."""

import json
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.outcome import Crashed
from autotune.core.recipe import Recipe
from autotune.demo import CONVERSATIONS
from autotune.search.predicted_memory import Prediction
from benchmarks.gpu import search
from benchmarks.gpu.cases import make
from benchmarks.gpu.published import FULL_0_5B, LORA_7B
from benchmarks.gpu.search import Kept, TimeIsUp, ending, settings_of
from benchmarks.machines import plain_cpu
from benchmarks.rows import RowFile, read
from tests import stand_ins
from tests.benchmarks.gpu.test_measure import OOM, RAN, Scripted
from tests.core.examples import A100, context, workload
from tests.stand_ins import search_request


def test_an_example_that_is_not_legal_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason; of the others every one stands beside TRL's defaults."""
    everything_fits: Any = type("Predictions", (), {"predict": lambda predictions, candidate: Prediction(fits=True)})()
    for model_type, left_out in (("llama", []), ("opt", ["Axolotl's example"])):
        work = workload(method="lora", effective_batch_size=16, model={"model_type": model_type})
        found = settings_of(context(A100, work=work), everything_fits, LORA_7B)
        kept = [name for name in LORA_7B if name not in left_out]
        assert list(found) == [search.DEFAULTS, search.LARGEST, *kept]
        assert found[search.LARGEST].per_device_train_batch_size == 16
    assert [line.split(" is left out: ")[0] for line in capsys.readouterr().err.splitlines()] == ["Axolotl's example"]


def test_a_training_is_measured_once(tmp_path: Path) -> None:
    """An earlier process's answer stands, for the same candidate, round and device; a crash is no answer."""
    about = {"device": "d", "uuid": "u", "versions": {}, "name": "n", "data_fingerprint": "f"}
    file = RowFile(path=tmp_path / "rows.jsonl", about=about, identity=search.IDENTITY)
    request, here = search_request(tmp_path, Recipe(), tmp_path / "search"), context(plain_cpu(), work=workload())
    one, other = (search.task_of(make("m", "full", rows, 64).candidate, request, here) for rows in (1, 2))
    crash = Crashed(message="lost", log_tail="", wall_s=1.0)
    before = Kept(Scripted(RAN, crash), file)
    assert [before.perform(task, limit_s=None) for task in (one, other)] == [RAN, crash]
    now = Kept(Scripted(OOM, RAN), file)
    again = [now.perform(task, limit_s=None) for task in (one, other, replace(one, seed=1), other)]
    assert again == [RAN, OOM, RAN, OOM]
    assert Kept(Scripted(OOM), replace(file, about={**about, "uuid": "v"})).perform(one, limit_s=None) == OOM
    assert [row["outcome"]["kind"] for row in read(file.path)] == [
        "measured", "crashed", "out_of_memory", "measured", "out_of_memory",
    ]  # fmt: skip


def test_a_search_ends_with_its_budget(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is in the middle of; and the clock of the next one is its own."""
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(search, "probe", lambda **_: time.sleep(60))
    row = search.run("tiny", data=CONVERSATIONS, minutes=1, out=tmp_path, home=home, deadline=time.monotonic(),
                         use_gpu=False, commit="c")  # fmt: skip
    assert row == {"name": "tiny", "left": ["tiny"], "rows": []}
    assert capsys.readouterr().err == "the time is up; the same command goes on\n"
    with ending(time.monotonic() + 0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(TimeIsUp), ending(time.monotonic() + 0.05):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_search_beside_what_people_start_from(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it by a formula: what was found is measured with the others in every round, and is faster.

    What the budget cut off goes on, and what is there stands.
    """
    stand_ins.train_by_formula(monkeypatch)
    stand_ins.predict_by_formula(monkeypatch)
    here = plain_cpu()
    monkeypatch.setattr(search, "probe", lambda **_: here)

    def call(seconds: float) -> dict[str, Any]:
        return search.run(
            "tiny",
            data=CONVERSATIONS,
            minutes=0.6,  # the first trial waits for the imports
            out=tmp_path,
            home=home,
            deadline=time.monotonic() + seconds,
            use_gpu=False,
            commit="c",
        )

    assert call(0.1)["left"] == ["tiny"]
    row = call(300.0)
    *trainings, kept = read(tmp_path / search.FILE)
    assert {**kept, "rows": trainings, "left": []} == row
    assert {search.FOUND, search.DEFAULTS, search.LARGEST, *FULL_0_5B} == kept["rivals"].keys()
    assert len(trainings) == len(kept["rivals"]) * search.ROUNDS
    assert kept["rivals"][search.DEFAULTS]["samples_per_step"] == search.SAMPLES
    for name, knobs in FULL_0_5B.items():
        candidate = kept["rivals"][name]["candidate"]
        assert candidate["weights_dtype"] == knobs["weights_dtype"]
        assert candidate["max_length"] == min(knobs["max_length"], 2048)  # tokens that `tiny` takes
    assert all(rival["outcomes"] == ["measured"] * search.ROUNDS for rival in kept["rivals"].values())
    assert all(found["ratio"] > 1 for found in kept["speedups"].values())
    assert len(kept["speedups"]) == len(kept["rivals"]) - 1
    monkeypatch.setattr(search, "search", None)
    assert call(300.0) == row
    (tmp_path / search.FILE).write_text("".join(json.dumps(each) + "\n" for each in trainings))
    monkeypatch.setattr(search, "Workers", lambda **_: nullcontext())
    assert call(300.0)["speedups"] == row["speedups"]
