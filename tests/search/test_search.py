"""The search itself, with a worker that answers at once by a formula: order, budgets, resuming, what is reported."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.outcome import Crashed, Measured, Outcome, TimedOut, outcome_to_dict
from autotune.core.recipe import Recipe
from autotune.core.time.calibrate import MemoryCalibration
from autotune.core.trials.budget import Budget
from autotune.core.units import MIB
from autotune.core.workload import Workload
from autotune.errors import NothingFits, TrainingFailed, UsageError
from autotune.predict.experience import recall
from autotune.search.display import SearchDisplay
from autotune.search.request import SearchRequest
from autotune.search.result import summary_lines
from autotune.search.search import search
from autotune.train import workers as module
from autotune.train.task import Measure, Task
from tests import stand_ins

HARDWARE = Hardware(
    kind="cpu",
    name="a processor",
    uuid="cpu-1",
    memory_bytes=2**34,
    free_bytes=2**34,
    used_by_others_bytes=0,
    cores=2,
    host_memory_bytes=2**34,
    host_free_bytes=2**34,
    supports_bf16=True,
)


@pytest.fixture
def request_(home: Path, recipe: Recipe, workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A search of `tiny` on the demo data whose trials are made up."""
    monkeypatch.setattr(module, "serve", stand_ins.serve_by_formula)
    stand_ins.predict_by_formula(monkeypatch)
    return stand_ins.search_request(home, recipe, tmp_path / "out", HARDWARE)


def run(request: SearchRequest) -> dict:
    """Search, showing nothing."""
    return search(request, display=SearchDisplay(Console(quiet=True)))


def first_measurements(result: dict) -> list[dict]:
    """The trials of a result that repeat no other."""
    return [each for each in result["trials"] if each["role"] != "repeat"]


def test_baseline_first_then_by_hand_then_the_sampler(request_: SearchRequest) -> None:
    """The budget of trials counts first measurements; what is reported comes from rounds of repeats."""
    result = run(request_)
    assert [each["role"] for each in first_measurements(result)] == ["baseline", "by_hand"] + 4 * ["search"]
    repeats = [(each["round"], each["of"]) for each in result["trials"] if each["role"] == "repeat"]
    order = [of for round_, of in repeats if round_ == 0]
    assert order[:2] == [0, 1]
    assert [of for round_, of in repeats if round_ == 1] == order[::-1]
    best, baseline = (Candidate(**result[key]["candidate"]) for key in ("best", "baseline"))
    assert result["speedup"] == pytest.approx(stand_ins.formula_rate(best) / stand_ins.formula_rate(baseline))
    low, high = result["speedup_interval"]
    assert low <= result["speedup"] <= high
    assert result["space"]["legal"] < result["space"]["enumerated"]
    assert json.loads((request_.out / "result.json").read_text()) == result
    assert any("TRL's defaults" in line for line in summary_lines(result))


def test_the_roofline_tries_the_best_at_once_and_ends(request_: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that are right but for a factor: the references show it, and after few trials nothing can win."""
    stand_ins.predict_seconds_by_formula(monkeypatch, factor=1.5)
    result = run(replace(request_, sampler="roofline", trials=50))
    tried = [Candidate(**each["candidate"]) for each in first_measurements(result) if each["role"] == "search"]
    rates = [stand_ins.formula_rate(candidate) for candidate in tried]
    assert rates[0] == max(rates) == pytest.approx(stand_ins.formula_rate(Candidate(**result["best"]["candidate"])))
    assert len(tried) < 20
    sources = {receipt["knob"]: receipt["without"]["source"] for receipt in result["receipts"]}
    assert "tuned_allocator" not in sources  # no candidate of the space lacks it
    assert "predicted" in sources.values()
    assert len(recall(request_.home, HARDWARE)) == len(tried)  # the references lack the tuned allocator


def test_a_reference_that_breaks_the_pins_sets_no_bar(request_: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand one would not checkpoint; where it is pinned, candidates compete with one another."""
    stand_ins.predict_seconds_by_formula(monkeypatch, factor=1.0)
    result = run(replace(request_, sampler="roofline", trials=20, fixed={"checkpointing": "full"}))
    tried = [Candidate(**each["candidate"]) for each in first_measurements(result) if each["role"] == "search"]
    assert tried
    assert result["best"]["candidate"]["checkpointing"] == "full"
    rates = [stand_ins.formula_rate(candidate) for candidate in tried]
    assert stand_ins.formula_rate(Candidate(**result["best"]["candidate"])) == max(rates)


def test_the_winner_has_receipts(request_: SearchRequest) -> None:
    """What the best without each value reaches, as measured; in the summary those that gained something."""
    result = run(request_)
    best = Candidate(**result["best"]["candidate"])
    assert len({receipt["knob"] for receipt in result["receipts"]}) == len(result["receipts"]) >= 3
    for receipt in result["receipts"]:
        rival = Candidate(**receipt["without"]["candidate"])
        assert receipt["value"] == getattr(best, receipt["knob"]) != receipt["without"]["value"]
        assert receipt["without"]["source"] == "measured"
        assert result["trials"][receipt["without"]["trial"]]["candidate"] == rival.to_dict()
        assert rival.tuned_allocator  # as all of the space: references compete elsewhere
        assert receipt["gain"] == pytest.approx(stand_ins.formula_rate(best) / stand_ins.formula_rate(rival) - 1)
    assert result["runner_up"]["useful_tokens_per_s"] <= stand_ins.formula_rate(best)
    assert any("over the best without it" in line for line in summary_lines(result))


@pytest.mark.parametrize(("fidelity", "as_asked"), [(Fidelity.close, True), (Fidelity.exact, False)])
def test_losses_are_held_against_the_fidelity(request_: SearchRequest, fidelity: Fidelity, as_asked: bool) -> None:
    """The stand-in's tuned allocator moves them by half of what another order does: too much at `exact`."""
    result = run(replace(request_, fidelity=fidelity))
    losses = result["losses"]
    assert (losses["difference"], losses["between_orders"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert len(losses["best"]) == 10
    assert losses["as_asked"] is as_asked
    assert any("WARNING" in line for line in summary_lines(result)) is not as_asked


def test_losses_are_not_compared_for_too_much_of_the_time(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result says what it would have taken."""
    monkeypatch.setattr("autotune.search.losses.needed_s", lambda baseline, best, reading_s: 1000.0)
    result = run(replace(request_, minutes=1.0))
    assert "it would have taken 16" in result["losses"]["not_compared"]


def test_run_yaml_is_complete_and_gives_a_reason_for_each_value(request_: SearchRequest) -> None:
    """The file holds the winner's every knob and the recipe, and each knob's line says why."""
    result = run(request_)
    text = (request_.out / "run.yaml").read_text()
    document = yaml.safe_load(text)
    assert Candidate(**document["candidate"]).to_dict() == result["best"]["candidate"]
    recipe = document["recipe"] | {"lora_target_modules": tuple(document["recipe"]["lora_target_modules"])}
    assert Recipe(**recipe) == replace(request_.recipe, method="full", learning_rate=2e-5)
    assert (document["model"]["path"], document["data"]["path"]) == ("tiny", "demo")
    knobs = text.split("candidate:")[1].strip().splitlines()[1:]
    assert all("  # " in line and line.split("  # ")[1].strip() for line in knobs)


def test_what_does_not_fit_is_never_tried(request_: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline comes down to what fits, and nothing is proposed beyond it; the result counts what was left out."""
    monkeypatch.setattr("autotune.core.memory.estimate.MEMORY_SHARE", 4600 * MIB / HARDWARE.memory_bytes)
    monkeypatch.setattr("autotune.search.predictions.calibrate_memory", lambda peaks: MemoryCalibration())
    result = run(replace(request_, trials=12))
    peaks = [stand_ins.formula_peak(Candidate(**each["candidate"])).bytes for each in result["trials"]]
    assert max(peaks) <= 4600 * MIB
    assert result["baseline_differs"]["per_device_train_batch_size"] == [8, 4]
    assert result["space"]["fitting"] < result["space"]["legal"]
    for each in result["trials"]:
        assert each["estimate"]["peak_allocated_bytes"] == sum(each["estimate"]["items"].values())
        assert each["estimate"]["limit_bytes"] == 4600 * MIB


def test_a_miss_of_the_prediction_is_reported(request_: SearchRequest) -> None:
    """A trial that was predicted to fit and ran out of memory, with both numbers; nothing as large is tried again."""
    result = run(replace(request_, seed=stand_ins.NO_MEMORY_FOR_FOUR_ROWS, trials=8))
    failed = [each for each in result["trials"] if each["outcome"]["kind"] == "out_of_memory"]
    assert [miss["number"] for miss in result["misses"]] == [each["number"] for each in failed]
    assert all(miss["predicted_bytes"] <= miss["limit_bytes"] and miss["peak_bytes"] == 1 for miss in result["misses"])
    peaks = [each["estimate"]["peak_allocated_bytes"] for each in failed]
    assert peaks == sorted(peaks, reverse=True)


def test_nothing_measured_is_measured_again(request_: SearchRequest) -> None:
    """The same directory goes on: no trial twice, and only as many more as the larger budget allows."""
    before = run(request_)
    again = run(request_)
    assert again["trials"] == before["trials"]
    more = run(replace(request_, trials=8))
    assert more["trials"][: len(before["trials"])] == before["trials"]
    assert len(first_measurements(more)) == 8


def test_a_torn_journal_and_a_lost_outcome_lose_one_trial_at_most(request_: SearchRequest) -> None:
    """The folders are the record: a torn journal is made anew, a trial without an outcome is measured again."""
    before = run(request_)
    with (request_.out / "study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "trial_')
    (request_.out / "trials" / f"{before['trials'][-1]['number']:04d}" / "outcome.json").unlink()
    after = run(request_)
    assert after["trials"][:-1] == before["trials"][:-1]
    assert len(after["trials"]) == len(before["trials"])


def test_another_recipe_in_the_same_directory_is_refused(request_: SearchRequest) -> None:
    """What was measured for one training says nothing about another."""
    run(request_)
    with pytest.raises(UsageError, match="recipe"):
        run(replace(request_, recipe=replace(request_.recipe, lora_rank=8)))


def test_a_search_ends_in_time_even_if_trials_hang(request_: SearchRequest) -> None:
    """Trials that never answer are killed so that the search keeps its wall-clock budget."""
    started = time.monotonic()
    result = run(replace(request_, seed=stand_ins.HANGS_AFTER_BASELINE, minutes=0.2, trials=None))
    assert time.monotonic() - started < 0.2 * 60 + 15  # describing and starting the fork server count too
    assert result["by_hand"]["outcome"]["kind"] == "timed_out"
    assert "baseline" in result["answer"]


def test_the_baseline_falls_back_to_smaller_micro_batches(request_: SearchRequest) -> None:
    """Where TRL's defaults do not fit, the micro-batch is halved until they do; that is the baseline."""
    result = run(replace(request_, seed=stand_ins.NO_MEMORY_FOR_FOUR_ROWS))
    roles = [each["role"] for each in result["trials"]]
    assert roles[:3] == ["baseline"] * 3
    assert [each["candidate"]["per_device_train_batch_size"] for each in result["trials"][:3]] == [8, 4, 2]
    assert result["baseline"]["candidate"]["per_device_train_batch_size"] == 2
    assert result["baseline"]["outcome"]["kind"] == "measured"


def test_when_nothing_fits_it_says_so(request_: SearchRequest) -> None:
    """Not even the smallest baseline runs: an error with what to try, and no result file."""
    with pytest.raises(NothingFits, match=r"recipe\.method"):
        run(replace(request_, seed=stand_ins.NO_MEMORY))
    assert not (request_.out / "result.json").exists()


@pytest.mark.parametrize(
    ("seed", "why"),
    [
        (stand_ins.BASELINE_WINS, "no candidate is really faster"),
        (stand_ins.ALL_BUT_THE_BASELINE_CRASH, "nothing could be measured beside the baseline"),
    ],
)
def test_if_nothing_is_faster_the_answer_is_the_baseline(request_: SearchRequest, seed: int, why: str) -> None:
    """In those words, and run.yaml trains with it."""
    result = run(replace(request_, seed=seed))
    assert result["answer"] == f"{why}: the answer is the baseline"
    assert result["best"]["candidate"] == result["baseline"]["candidate"]
    document = yaml.safe_load((request_.out / "run.yaml").read_text())
    assert document["candidate"] == result["baseline"]["candidate"]


def test_fixed_knobs_hold_for_everything_that_may_win(request_: SearchRequest) -> None:
    """The baseline is TRL's defaults whatever is fixed; what is proposed has the fixed value."""
    result = run(replace(request_, fixed={"per_device_train_batch_size": 2}))
    tried = [each["candidate"] for each in result["trials"] if each["role"] == "search"]
    assert {candidate["per_device_train_batch_size"] for candidate in tried} == {2}
    assert result["best"]["candidate"]["per_device_train_batch_size"] == 2


def test_the_answer_keeps_what_was_fixed_even_where_the_baseline_is_faster(request_: SearchRequest) -> None:
    """Then the fastest with the fixed value is the answer, and it says that it is slower."""
    fixed = {"per_device_train_batch_size": 2}
    result = run(replace(request_, seed=stand_ins.BASELINE_WINS, fixed=fixed))
    assert result["best"]["candidate"]["per_device_train_batch_size"] == 2
    assert result["speedup"] < 1
    lines = (request_.out / "run.yaml").read_text().splitlines()
    assert [line for line in lines if line.endswith("# fixed by you")] == [
        "  per_device_train_batch_size: 2  # fixed by you"
    ]


def test_a_baseline_that_does_not_fit_is_not_the_end(request_: SearchRequest) -> None:
    """Something else may fit; there is then no speed-up over what cannot be had, and the answer says why."""
    result = run(replace(request_, seed=stand_ins.ONLY_8BIT_STATES_FIT, trials=24, sampler="random"))
    assert result["baseline"]["outcome"]["kind"] == "out_of_memory"
    assert result["best"]["candidate"]["optimizer"] == "adamw_8bit"
    assert result["speedup"] is None
    assert "TRL's defaults do not fit in memory" in result["answer"]


def test_one_that_fails_when_repeated_does_not_spoil_the_comparison(request_: SearchRequest) -> None:
    """It is out; the others are compared in all rounds."""
    result = run(replace(request_, seed=stand_ins.BY_HAND_FAILS_AGAIN))
    assert "1" not in result["second_measurement"]
    assert {len(rates) for rates in result["second_measurement"].values()} == {2}
    assert result["speedup"] > 1
    assert result["speedup_by_hand"] is None


def test_a_reference_stays_whatever_is_predicted_later(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fallbacks that were passed over, and would fit by what is believed now, are not asked again."""
    with monkeypatch.context() as tight:
        tight.setattr("autotune.core.memory.estimate.MEMORY_SHARE", 4600 * MIB / HARDWARE.memory_bytes)
        tight.setattr("autotune.search.predictions.calibrate_memory", lambda peaks: MemoryCalibration())
        before = run(request_)
    again = run(request_)
    assert [before[key]["candidate"]["per_device_train_batch_size"] for key in ("baseline", "by_hand")] == [4, 2]
    assert [again[key]["number"] for key in ("baseline", "by_hand")] == [0, 1]
    assert len(again["trials"]) == len(before["trials"])


def test_a_baseline_that_somebody_removed_is_measured_again(request_: SearchRequest) -> None:
    """As the record says to do with what cannot be read: whatever the budget, and beside what timed out without it."""
    run(request_)
    shutil.rmtree(request_.out / "trials" / "0000")
    outcome = TimedOut(limit_s=1000.0, wall_s=0.1)
    (request_.out / "trials" / "0001" / "outcome.json").write_text(json.dumps(outcome_to_dict(outcome)))
    again = run(replace(request_, trials=2))
    assert again["baseline"]["outcome"]["kind"] == "measured"
    assert again["by_hand"]["outcome"]["kind"] == "timed_out"
    assert again["speedup"] > 1


def test_references_of_the_space_are_reserved_for_once(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the allocator is pinned as they have it, they are ranked as well."""
    reserve_s, asked = Budget.reserve_s, list[int]()

    def counted(budget: Budget, contenders: list[Measured], **rounds: int) -> float:
        asked.append(len(contenders))
        assert len({id(outcome) for outcome in contenders}) == len(contenders)
        return reserve_s(budget, contenders, **rounds)

    monkeypatch.setattr(Budget, "reserve_s", counted)
    run(replace(request_, fixed={"tuned_allocator": False}))
    assert max(asked) == 4


def fail_repeats(monkeypatch: pytest.MonkeyPatch, of: Callable[[Candidate], bool]) -> None:
    """Let the second measurement of such candidates crash."""
    perform = module.Workers.perform

    def failing(workers: module.Workers, task: Task, **how: Any) -> Outcome:
        repeats = isinstance(task.goal, Measure) and not task.goal.worst_first
        crashed = Crashed(message="as asked", log_tail="", wall_s=0.1)
        return crashed if repeats and of(task.candidate) else perform(workers, task, **how)

    monkeypatch.setattr(module.Workers, "perform", failing)


def test_if_all_fail_when_they_are_repeated_there_is_no_answer_until_they_run(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not said that no time was left; the same directory measures them again."""
    with monkeypatch.context() as broken:
        fail_repeats(broken, of=lambda candidate: True)
        with pytest.raises(TrainingFailed, match="a second time"):
            run(request_)
    assert not (request_.out / "result.json").exists()
    assert run(request_)["speedup"] > 1


def test_if_all_others_fail_when_they_are_repeated_the_answer_is_the_baseline(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says why."""
    fail_repeats(monkeypatch, of=lambda candidate: candidate.tuned_allocator or candidate.checkpointing == "off")
    result = run(request_)
    assert result["best"]["role"] == "baseline"
    assert result["answer"] == "all others failed when they were measured again: the answer is the baseline"


def test_the_time_of_earlier_sittings_counts(request_: SearchRequest) -> None:
    """All of it, not that of their trials alone."""
    run(request_)
    (request_.out / "spent_s.json").write_text("1000.0")
    assert run(request_)["wall_s"]["total"] > 1000


def test_what_a_short_budget_cut_off_is_tried_again_with_a_longer_one(request_: SearchRequest) -> None:
    """The error says to raise budget.minutes, so that must help; nor does it count in the budget of trials."""
    for minutes in (0.05, 0.2, 0.4):
        with pytest.raises(TrainingFailed, match=r"raise budget\.minutes"):
            run(replace(request_, seed=stand_ins.HANGS, minutes=minutes, trials=2))
    assert len(list((request_.out / "trials").iterdir())) == 3


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
import pytest
from autotune.train import fork_server, workers
from autotune.core.candidate import Fidelity
from autotune.core.recipe import Recipe
from autotune.search.display import SearchDisplay
from autotune.search.search import search
from autotune.search.request import SearchRequest
from tests import stand_ins
from tests.search.test_search import HARDWARE

if __name__ == "__main__":
    workers.serve, fork_server.PRELOAD = stand_ins.serve_by_formula, []
    stand_ins.predict_by_formula(pytest.MonkeyPatch())
    request = SearchRequest(
        model="tiny", data="demo", columns={}, recipe=Recipe(effective_batch_size=8), fidelity=Fidelity.close,
        fixed={}, hardware=HARDWARE, minutes=None, trials=8, sampler="random", seed=stand_ins.SLOW,
        out=Path(sys.argv[1]), home=Path(sys.argv[2]),
    )
    search(request, display=SearchDisplay(Console(quiet=True)))
"""


def test_killed_at_any_moment_it_goes_on(home: Path, workload: Workload, tmp_path: Path) -> None:
    """kill -9 at random moments, again and again: at the end every trial is there once, and nothing was repeated."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(out), str(home)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    moments = random.Random(0)
    seen: dict[str, str] = {}
    for _ in range(5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(1.5, 4.5))
        process.kill()
        process.wait()
        for file in sorted(out.glob("trials/*/outcome.json")):
            assert seen.setdefault(str(file), file.read_text()) == file.read_text()
    subprocess.run(command, env=environment, check=True, timeout=120)
    result = json.loads((out / "result.json").read_text())
    for file, text in seen.items():
        assert Path(file).read_text() == text
    candidates = [json.dumps(each["candidate"]) for each in first_measurements(result)]
    assert len(candidates) == len(set(candidates)) == 8
