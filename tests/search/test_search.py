"""The search itself, with a worker that answers at once by a formula: order, budgets, resuming, what is reported."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from rich.console import Console

from autotune.cli.schema import result_schema
from autotune.core.candidate import Candidate, Fidelity
from autotune.core.decode import encode
from autotune.core.hardware import Hardware
from autotune.core.memory.calibration import MemoryCalibration
from autotune.core.outcome import Measured, TimedOut, outcome_to_dict
from autotune.core.recipe import Recipe
from autotune.core.trials.budget import Budget
from autotune.core.units import MIB
from autotune.core.workload import Workload
from autotune.errors import NothingFits, TrainingFailed, UsageError
from autotune.predict.experience import recall
from autotune.search.display import SearchDisplay
from autotune.search.request import SearchRequest, workload_of
from autotune.search.result import read_result
from autotune.search.search import search
from autotune.search.summary import summary_lines
from tests import stand_ins
from tests.stand_ins import Scenario

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
PUBLISHED = Draft202012Validator(result_schema())


@pytest.fixture
def request_(home: Path, recipe: Recipe, workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A search of `tiny` on the demo data whose predictions are made up."""
    stand_ins.predict_by_formula(monkeypatch)
    return stand_ins.search_request(home, recipe, tmp_path / "out")


def run(request: SearchRequest, scenario: Scenario = stand_ins.FORMULA, console: Console | None = None) -> dict:
    """Search with trials that are made up, and return the object of result.json. Nothing is shown without a console."""
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.train_by_formula(patch, scenario)
        display = SearchDisplay(console or Console(quiet=True))
        result = search(request, workload_of(request, progress=display.line), HARDWARE, display=display)
    document: dict = json.loads((request.out / "result.json").read_text())
    assert list(PUBLISHED.iter_errors(document)) == []
    assert document == encode(result)
    return document


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
    assert any("TRL's defaults" in line for line in summary_lines(read_result(request_.out / "result.json")))


def test_the_roofline_tries_the_best_at_once_and_ends(request_: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that are right but for a factor: the references show it, and after few trials nothing can win."""
    stand_ins.predict_seconds_by_formula(monkeypatch, factor=1.5)
    result = run(replace(request_, sampler="roofline", trials=50))
    *tried, plain = [Candidate(**each["candidate"]) for each in first_measurements(result) if each["role"] == "search"]
    rates = [stand_ins.formula_rate(candidate) for candidate in tried]
    assert plain == replace(tried[0], tuned_allocator=False)  # after all others: it is no candidate of the space
    assert rates[0] == max(rates) == pytest.approx(stand_ins.formula_rate(Candidate(**result["best"]["candidate"])))
    assert len(tried) < 20
    sources = {receipt["knob"]: receipt["without"]["source"] for receipt in result["receipts"]}
    assert sources["tuned_allocator"] == "measured"
    assert "predicted" in sources.values()
    assert len(recall(request_.home, HARDWARE)) == len(tried)  # the references lack the tuned allocator


def test_a_reference_without_the_fixed_values_sets_no_bar(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand one would not checkpoint; where it is fixed, candidates compete with one another."""
    stand_ins.predict_seconds_by_formula(monkeypatch, factor=1.0)
    result = run(replace(request_, sampler="roofline", trials=20, fixed={"checkpointing": "full"}))
    tried = [Candidate(**each["candidate"]) for each in first_measurements(result) if each["role"] == "search"]
    assert tried
    assert result["best"]["candidate"]["checkpointing"] == "full"
    rates = [stand_ins.formula_rate(candidate) for candidate in tried]
    assert stand_ins.formula_rate(Candidate(**result["best"]["candidate"])) == max(rates)


def test_the_winner_has_receipts(request_: SearchRequest) -> None:
    """What the best with another value reaches, as measured: of the space, whose allocator is tuned."""
    result = run(request_)
    best = Candidate(**result["best"]["candidate"])
    assert len({receipt["knob"] for receipt in result["receipts"]}) == len(result["receipts"]) >= 3
    for receipt in result["receipts"]:
        rival = Candidate(**receipt["without"]["candidate"])
        assert receipt["value"] == getattr(best, receipt["knob"]) != receipt["without"]["value"]
        assert receipt["without"]["source"] == "measured"
        assert result["trials"][receipt["without"]["trial"]]["candidate"] == rival.to_dict()
        assert rival.tuned_allocator
        assert receipt["gain"] == pytest.approx(stand_ins.formula_rate(best) / stand_ins.formula_rate(rival) - 1)
    assert result["runner_up"]["useful_tokens_per_s"] <= stand_ins.formula_rate(best)
    assert "tuned_allocator" in result["without_receipt"]  # no reference is the winner with another allocator


def test_the_tuned_allocator_is_compared_with_a_reference(request_: SearchRequest) -> None:
    """With settings by hand where they are the winner but for it; the space has no other value."""
    fixed = {"batching": "random", "per_device_train_batch_size": 1, "checkpointing": "off"}
    recipe = replace(request_.recipe, effective_batch_size=1)
    result = run(replace(request_, recipe=recipe, fixed=fixed, sampler="random"))
    [receipt] = [each for each in result["receipts"] if each["knob"] == "tuned_allocator"]
    assert receipt["without"]["trial"] == result["by_hand"]["number"]
    assert receipt["gain"] == pytest.approx(0.2)
    assert "tuned_allocator" not in result["without_receipt"]


@pytest.mark.parametrize(("fidelity", "as_asked"), [(Fidelity.close, True), (Fidelity.exact, False)])
def test_losses_are_held_against_the_fidelity(request_: SearchRequest, fidelity: Fidelity, as_asked: bool) -> None:
    """The stand-in's tuned allocator moves them by half of what another order does: too much at `exact`."""
    result = run(replace(request_, fidelity=fidelity))
    losses = result["losses"]
    assert (losses["difference"], losses["between_orders"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert len(losses["best"]) == 10
    assert losses["as_asked"] is as_asked
    assert any("WARNING" in line for line in summary_lines(read_result(request_.out / "result.json"))) is not as_asked


def test_losses_are_not_compared_for_too_much_of_the_time(
    request_: SearchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result says what it would have taken."""
    monkeypatch.setattr("autotune.search.losses.comparison_s", lambda baseline, best, reading_s: 1000.0)
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


@pytest.mark.parametrize("explain", [False, True])
def test_the_space_is_one_line_unless_it_is_explained(request_: SearchRequest, explain: bool) -> None:
    """The reasons stand in result.json in any case."""
    shown = StringIO()
    result = run(replace(request_, trials=2, explain=explain), console=Console(file=shown, width=200))
    space, lines = result["space"], shown.getvalue().splitlines()
    counts = f"{space['legal']:,} legal candidates of {space['enumerated']:,} combinations"
    assert (f"{counts}; explain=true lists why the others are not legal" in lines) is not explain
    reasons = [line for line in lines if " removed: " in line or " left out: " in line]
    assert len(reasons) == (len(space["removed"]) + len(space["left_out"]) if explain else 0)
    assert space["removed"]
    assert any(value.startswith("attention=flash_attention") for value in space["left_out"])


def test_what_does_not_fit_is_never_tried(request_: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline comes down to what fits, and nothing is proposed beyond it; the result counts what was left out."""
    monkeypatch.setattr("autotune.core.memory.estimate.MEMORY_SHARE", 4600 * MIB / HARDWARE.memory_bytes)
    monkeypatch.setattr("autotune.search.predicted_memory.calibrate_memory", lambda peaks: MemoryCalibration())
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
    result = run(replace(request_, trials=8), Scenario(rows_that_fit=2))
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
    result = run(replace(request_, minutes=0.2, trials=None), Scenario(hangs="all but the baseline"))
    assert time.monotonic() - started < 0.2 * 60 + 15  # describing and starting the fork server count too
    assert result["by_hand"]["outcome"]["kind"] == "timed_out"
    assert "baseline" in result["answer"]


def test_the_baseline_falls_back_to_smaller_micro_batches(request_: SearchRequest) -> None:
    """Where TRL's defaults do not fit, the micro-batch is halved until they do; that is the baseline."""
    result = run(request_, Scenario(rows_that_fit=2))
    roles = [each["role"] for each in result["trials"]]
    assert roles[:3] == ["baseline"] * 3
    assert [each["candidate"]["per_device_train_batch_size"] for each in result["trials"][:3]] == [8, 4, 2]
    assert result["baseline"]["candidate"]["per_device_train_batch_size"] == 2
    assert result["baseline"]["outcome"]["kind"] == "measured"


def test_when_nothing_fits_it_says_so(request_: SearchRequest) -> None:
    """Not even the smallest baseline runs: an error with what to try, and no result file."""
    with pytest.raises(NothingFits, match=r"recipe\.method"):
        run(replace(request_, sampler="random"), Scenario(rows_that_fit=0))
    assert not (request_.out / "result.json").exists()


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        (Scenario(crawls="all but the baseline"), "no candidate is really faster"),
        (Scenario(crashes="all but the baseline"), "nothing could be measured beside the baseline"),
    ],
    ids=["slow", "crash"],
)
def test_if_nothing_is_faster_the_answer_is_the_baseline(request_: SearchRequest, scenario: Scenario, why: str) -> None:
    """In those words, and run.yaml trains with it."""
    result = run(request_, scenario)
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
    result = run(replace(request_, fixed=fixed), Scenario(crawls="all but the baseline"))
    assert result["best"]["candidate"]["per_device_train_batch_size"] == 2
    assert result["speedup"] < 1
    lines = (request_.out / "run.yaml").read_text().splitlines()
    assert [line for line in lines if line.endswith("# fixed by you")] == [
        "  per_device_train_batch_size: 2  # fixed by you"
    ]


def test_a_baseline_that_does_not_fit_is_not_the_end(request_: SearchRequest) -> None:
    """Something else may fit; there is then no speed-up over what cannot be had, and the answer says why."""
    result = run(replace(request_, trials=24, sampler="random"), Scenario(optimizer_that_fits="adamw_8bit"))
    assert result["baseline"]["outcome"]["kind"] == "out_of_memory"
    assert result["best"]["candidate"]["optimizer"] == "adamw_8bit"
    assert result["speedup"] is None
    assert "TRL's defaults do not fit in memory" in result["answer"]


def test_one_that_fails_when_repeated_does_not_spoil_the_comparison(request_: SearchRequest) -> None:
    """It is out; the others are compared in all rounds."""
    result = run(request_, Scenario(crashes_again="by_hand"))
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
        tight.setattr("autotune.search.predicted_memory.calibrate_memory", lambda peaks: MemoryCalibration())
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
    """Where the allocator is fixed as they have it, they are ranked as well."""
    reserve_s, asked = Budget.reserve_s, list[int]()

    def counted(budget: Budget, contenders: list[Measured], **rounds: int) -> float:
        asked.append(len(contenders))
        assert len({id(outcome) for outcome in contenders}) == len(contenders)
        return reserve_s(budget, contenders, **rounds)

    monkeypatch.setattr(Budget, "reserve_s", counted)
    run(replace(request_, fixed={"tuned_allocator": False}))
    assert max(asked) == 4


def test_if_all_fail_when_they_are_repeated_there_is_no_answer_until_they_run(request_: SearchRequest) -> None:
    """It is not said that no time was left; the same directory measures them again."""
    with pytest.raises(TrainingFailed, match="a second time"):
        run(request_, Scenario(crashes_again="everybody"))
    assert not (request_.out / "result.json").exists()
    assert run(request_)["speedup"] > 1


def test_if_all_others_fail_when_they_are_repeated_the_answer_is_the_baseline(request_: SearchRequest) -> None:
    """And says why."""
    result = run(request_, Scenario(crashes_again="all but the baseline"))
    assert result["best"]["role"] == "baseline"
    assert result["answer"] == "all others failed when they were measured again: the answer is the baseline"


def test_the_time_of_earlier_sittings_counts(request_: SearchRequest) -> None:
    """All of it, not that of their trials alone."""
    run(request_)
    (request_.out / "spent_s.json").write_text("1000.0")
    assert run(request_)["wall_s"]["total"] > 1000


def test_what_a_short_budget_cut_off_is_tried_again_with_a_longer_one(request_: SearchRequest) -> None:
    """The error says to raise budget.minutes, so that must help; nor does it count in the budget of trials."""
    for minutes in (0.05, 0.1, 0.2):
        with pytest.raises(TrainingFailed, match=r"raise budget\.minutes"):
            run(replace(request_, minutes=minutes, trials=2), Scenario(hangs="everybody"))
    assert len(list((request_.out / "trials").iterdir())) == 3


SCRIPT = """
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from rich.console import Console
import pytest
from autotune.core.candidate import Fidelity
from autotune.core.recipe import Recipe
from autotune.search.display import SearchDisplay
from autotune.search.search import search
from autotune.search.request import SearchRequest, workload_of
from tests import stand_ins
from tests.search.test_search import HARDWARE

if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    stand_ins.train_by_formula(patch, stand_ins.Scenario(trial_s=0.15))
    stand_ins.predict_by_formula(patch)
    request = SearchRequest(
        model="tiny", data="demo", columns={}, recipe=Recipe(effective_batch_size=8), fidelity=Fidelity.close,
        fixed={}, minutes=None, trials=8, sampler="random", seed=42,
        out=Path(sys.argv[1]), home=Path(sys.argv[2]),
    )
    workload = workload_of(request, progress=lambda line: None)
    search(request, workload, HARDWARE, display=SearchDisplay(Console(quiet=True)))
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
