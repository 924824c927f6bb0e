"""benchmarks/gpu_suite.py without a GPU: what it chooses, in which order it writes, and what its rows add up to."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autotune.core.batches.batches import simulate_epoch, worst_batch
from autotune.core.candidate import short_name
from autotune.core.gpu_specs import UNKNOWN_CONTEXT_BYTES, read_gpu_spec
from autotune.core.hardware import Hardware
from autotune.core.knobs import VALUES
from autotune.core.memory.estimate import Demand, MemoryEstimate, Room
from autotune.core.memory.law import Peak
from autotune.core.outcome import Crashed, Outcome, OutOfMemory, TimedOut
from autotune.core.recipe import METHODS, Recipe
from autotune.core.space.context import Context, Installed
from autotune.core.space.legality import first_broken
from autotune.core.space.references import baseline
from autotune.core.time.law import SPENT
from autotune.core.workload import DataFacts, Lengths, Workload
from autotune.demo import CONVERSATIONS
from autotune.errors import AutotuneError
from autotune.machine.nvml import Gpu, GpuMemory
from autotune.models.catalogue import CONF
from autotune.models.find import resolve_architecture
from autotune.search.predictions import Prediction
from benchmarks.gpu import measure as gpu_rows
from benchmarks.gpu import search as gpu_search
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu import time as gpu_time
from benchmarks.gpu.cases import (
    CARDS,
    CASES,
    CPU_CASES,
    SEED,
    STEPS,
    Case,
    around,
    lengths_of,
    make,
    row_lengths,
    write_rows,
)
from benchmarks.gpu.measure import Watch, measure_all
from benchmarks.gpu.memory import MEMORY
from benchmarks.gpu.predictions import GpuJob, Planned, predict, waiting
from benchmarks.gpu.published import FULL_0_5B, LORA_7B, Settings, as_published
from benchmarks.gpu.search import Kept, TimeIsUp, ending, settings_of
from benchmarks.gpu.summary import GOAL, summary, untried
from benchmarks.machines import plain_cpu
from benchmarks.rows import append, own_rows, read
from tests import stand_ins
from tests.core.examples import A100, context, workload
from tests.stand_ins import measured, search_request

GIB = 2**30
SCRIPT = Path(gpu_suite.__file__).parents[1] / "gpu_suite.py"
ABOUT = {"device": "a GPU", "driver": "1", "versions": {"torch": "1"}, "commit": "c"}
SILENT = lambda line: None  # noqa: E731


@pytest.fixture(scope="module")
def h200() -> Hardware:
    """The GPU as the catalogue has it."""
    return read_gpu_spec(yaml.safe_load((CONF / "hardware" / "h200.yaml").read_text())["gpu"]).hardware(cores=16)


def gpu(name: str, capability: tuple[int, int]) -> Gpu:
    """A device as NVML tells it."""
    memory = GpuMemory(total=30 * GIB, free=29 * GIB, used=GIB, reserved=None)
    return Gpu(uuid="GPU-0", name=name, index=0, mig=False, memory=memory, compute_capability=capability, driver="999",
               cuda_driver=None, ecc=None, ecc_errors=None, power_limit_w=None, clock_limit_mhz=None,
               memory_clock_limit_mhz=None, peer_links=())  # fmt: skip


def test_the_gpu_is_the_catalogues_else_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the catalogue knows of a GPU counts, but its memory is the device's; one that it does not know will do."""
    found: list[Gpu] = []
    monkeypatch.setattr(gpu_rows, "find_gpus", lambda progress: tuple(found))
    with pytest.raises(AutotuneError, match="--cpu"):
        gpu_rows.gpu_at_hand(SILENT)
    found[:] = [gpu("Tesla T4", (7, 5))]
    known = gpu_rows.gpu_at_hand(SILENT)
    assert (known.context_bytes, known.memory_bytes, known.uuid) == (141 * 2**20, 30 * GIB, "GPU-0")
    found[:] = [gpu("NVIDIA X", (9, 0))]
    unknown = gpu_rows.gpu_at_hand(SILENT)
    assert (unknown.compute_capability, unknown.workspace_bytes) == ((9, 0), 64 * 2**20)
    assert (unknown.context_bytes, unknown.used_by_others_bytes) == (UNKNOWN_CONTEXT_BYTES, GIB)


def test_the_table_covers_what_it_should() -> None:
    """At least forty candidates, none twice, over all methods and the whole range of every knob."""
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    candidates = [case.candidate for case in CASES]
    assert {c.method for c in candidates} == set(METHODS)
    assert {c.checkpointing for c in candidates} == set(VALUES["checkpointing"]) - {"every_n"}
    optimizers = {"adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"}
    assert {c.optimizer for c in candidates} == optimizers
    assert {case.rows for case in CASES} == {"full", "padded", "packed"}
    assert {min(c.per_device_train_batch_size for c in candidates), *(c.row_length for c in candidates)} >= {1, 256}
    assert max(c.per_device_train_batch_size for c in candidates) == 16
    assert max(c.row_length for c in candidates) == 4096
    assert {c.tuned_allocator for c in candidates} == {True, False}
    assert {case.model for case in CASES} >= {"Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B", "google/gemma-2-2b"}


def test_every_case_is_legal(home: Path, h200: Hardware) -> None:
    """No library refuses a case, or silently trains another one."""
    families = [case for families in CARDS.values() for case in families]
    facts = {
        model: resolve_architecture(model, None, home=home, progress=SILENT)[1]
        for model in {case.model for case in CASES}
    }
    broken = []
    for case in (*CASES, *families):
        tokens = np.array(row_lengths(case), dtype=np.int64)
        data = DataFacts(
            path="",
            name="",
            form="text",
            lengths=Lengths(tokens=tokens, labels=tokens - 1),
            rows_in_file=len(tokens),
            coverage_error=0.0,
            tokenized_path="",
            fingerprint="",
        )
        workload = Workload(model=facts[case.model], data=data, recipe=case.recipe)
        context = Context(installed=Installed(), hardware=h200, workload=workload)
        if (rule := first_broken(case.candidate, context)) is not None:
            broken.append((case.name, rule.name))
    assert broken == []


def test_rows_are_what_a_case_says() -> None:
    """Padded rows begin with the largest micro-batch and always need a mask; packed ones fill their rows."""
    for case in CASES:
        lengths, size = row_lengths(case), case.candidate.per_device_train_batch_size
        if case.rows == "packed":
            assert sum(lengths) == STEPS * case.candidate.rows_per_step * case.candidate.row_length
            continue
        assert len(lengths) == STEPS * case.candidate.rows_per_step
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        assert batches[0] == sorted(lengths)[::-1][:size]
        assert lengths[0] == case.candidate.max_length
        assert all((len(set(batch)) > 1) == (case.rows == "padded") for batch in batches)


@pytest.mark.parametrize(("rows", "steps"), [(16, 1), (2, 2)])
def test_what_is_predicted_of_padded_rows_is_what_is_trained(tmp_path: Path, rows: int, steps: int) -> None:
    """The simulated epoch has the real sampler's micro-batches, and the worst one of memory is among them."""
    from accelerate.data_loader import SeedableRandomSampler
    from datasets import load_from_disk

    case = make("m", "lora", rows, 512, "padded", gradient_accumulation_steps=steps)
    write_rows(case, tmp_path)
    tokens = [len(row) for row in load_from_disk(tmp_path)["input_ids"]]
    taken = [tokens[place] for place in SeedableRandomSampler(range(len(tokens)), data_seed=SEED)]
    trained = [max(taken[i : i + rows]) for i in range(0, len(taken), rows)]
    lengths = lengths_of(case)
    assert lengths is not None
    assert simulate_epoch(case.candidate, lengths, seed=SEED).positions.tolist() == trained
    worst = worst_batch(case.candidate, lengths)
    assert (worst.positions, worst.labels) == (trained[0], sum(taken[:rows]) - rows)


def test_a_border_is_tried_from_both_sides() -> None:
    """The largest that fits, and where asked a quarter less and a quarter more; each once."""
    case = make("m", "lora", 1, 512)

    def sizes(largest: int, wide: bool) -> list[int]:
        found = list(around(case, 10**9, largest, wide=wide))
        assert {each.card_bytes for each in found} == {10**9}
        return [each.candidate.per_device_train_batch_size for each in found]

    assert sizes(40, True) == [30, 40, 50]
    assert sizes(40, False) == [40]
    assert sizes(1, True) == [1, 2]


def estimate(needed: int, limit: int = 100 * GIB) -> MemoryEstimate:
    """A prediction of so many bytes, without a context."""
    peak = Peak(bytes=needed, phase="backward", op="mm", items={"weights": needed})
    demand = Demand(peak=peak, phases={"training": needed, "loading": 1}, reserved_bytes=needed, allowance_bytes=0,
                    host_items={})  # fmt: skip
    return MemoryEstimate(
        demand=demand, room=Room(limit_bytes=limit, context_bytes=0, workspace_bytes=0, host_free_bytes=None)
    )


def plans(directory: Path, count: int) -> list[Planned]:
    cases = [make("m", "lora", rows, 512) for rows in range(1, count + 1)]
    return [Planned(case=case, directory=directory, estimate=estimate(10 * GIB)) for case in cases]


class Scripted:
    """Workers that answer with given outcomes, one after another."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.tasks: list[Any] = []

    def perform(self, task: Any, *, limit_s: float | None, on_event: Any = lambda event: None) -> Outcome:
        on_event({"event": "step"})
        self.tasks.append(task)
        return self.outcomes.pop(0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A GPU on which others hold 1 GiB, and the driver names no process."""
    used: Iterator[int] = iter([GIB, *[13 * GIB] * 99])
    monkeypatch.setattr(gpu_rows.nvml, "read_memory", lambda uuid: type("M", (), {"used": next(used)}))
    monkeypatch.setattr(gpu_rows.nvml, "process_bytes", lambda uuid, pid: None)
    return Watch("GPU-0")


OOM = OutOfMemory(message="CUDA out of memory", peak_bytes=None, wall_s=1.0)
RAN = replace(measured(), peak_bytes=8 * GIB, reserved_bytes=16 * GIB)


def test_a_row_holds_both_figures_and_an_out_of_memory_is_a_row(tmp_path: Path, watch: Watch) -> None:
    """What was measured stands beside what was predicted; running out of memory is an answer too."""
    file, workers = tmp_path / "rows.jsonl", Scripted(RAN, OOM)
    left = measure_all(MEMORY, plans(tmp_path, 2), workers, watch=watch, file=file, about=ABOUT,
                       deadline=time.monotonic() + 999, progress=SILENT)  # fmt: skip
    ran, failed = read(file)
    assert left == []
    assert ran["predicted"]["allocated_bytes"] == 10 * GIB
    assert ran["measured"]["device_bytes"] == 12 * GIB
    assert ran["errors"] == {"allocated_bytes": 0.25, "reserved_bytes": -0.375, "device_bytes": 10 / 12 - 1}
    assert (failed["outcome"], failed["measured"], failed["errors"]) == ("out_of_memory", None, {})
    assert summary([ran, failed])["missed"] == [failed["name"]]
    assert all(task.random_weights and task.allocator_limit_bytes is None for task in workers.tasks)


def test_a_card_limits_the_allocator(tmp_path: Path, watch: Watch) -> None:
    """On a card the allocator has its memory less the context, and what should not fit is tried all the same."""
    [plan] = plans(tmp_path, 1)
    room = Room(limit_bytes=9 * GIB, context_bytes=GIB, workspace_bytes=0, host_free_bytes=None)
    small = MemoryEstimate(demand=estimate(10 * GIB).demand, room=room)
    plan = replace(plan, case=replace(plan.case, card_bytes=10 * GIB), estimate=small)
    workers = Scripted(OOM)
    measure_all(MEMORY, [plan], workers, watch=watch, file=tmp_path / "rows.jsonl", about=ABOUT,
                deadline=time.monotonic() + 999, progress=SILENT)  # fmt: skip
    assert workers.tasks[0].allocator_limit_bytes == 9 * GIB
    assert summary(read(tmp_path / "rows.jsonl"))["missed"] == []


def test_what_is_not_predicted_to_fit_the_device_is_not_tried(tmp_path: Path, watch: Watch) -> None:
    """Nothing is learnt from running the whole device out of memory."""
    [plan] = plans(tmp_path, 1)
    unfit, unknown = (replace(plan, estimate=each) for each in (estimate(101 * GIB), None))
    workers = Scripted()
    assert measure_all(MEMORY, [unfit, unknown], workers, watch=watch, file=tmp_path / "rows.jsonl", about=ABOUT,
                       deadline=time.monotonic() + 999, progress=SILENT) == []  # fmt: skip
    assert workers.tasks == []


def test_the_budget_leaves_the_rest_for_another_run(tmp_path: Path, watch: Watch) -> None:
    """Nothing is begun when time is up, and what the budget cut off is not written as if the candidate were slow."""
    file, waits = tmp_path / "rows.jsonl", plans(tmp_path, 2)
    over = measure_all(MEMORY, waits, Scripted(), watch=watch, file=file, about=ABOUT, deadline=time.monotonic(),
                       progress=SILENT)  # fmt: skip
    late = TimedOut(limit_s=30.0, wall_s=30.0)
    cut = measure_all(MEMORY, waits[:1], Scripted(late), watch=watch, file=file, about=ABOUT,
                      deadline=time.monotonic() + 40, progress=SILENT)  # fmt: skip
    assert over == [plan.case.name for plan in waits]
    assert cut == over[:1]
    assert not file.exists()


def test_predicting_ends_with_the_budget(tmp_path: Path, home: Path) -> None:
    """What was not predicted in time is left, too."""
    result = gpu_rows.run(MEMORY, plain_cpu(), out=tmp_path, home=home, deadline=time.monotonic(), first=None, every=1,
                          commit="c", on_cpu=True, progress=SILENT)  # fmt: skip
    assert result["left"] == [case.name for case in CPU_CASES]
    assert not (tmp_path / MEMORY.file).exists()


def test_what_is_there_is_not_done_again(tmp_path: Path, watch: Watch) -> None:
    """A case is done when it was measured or out of memory on this device with these versions; a crash is not."""
    file, waits = tmp_path / "rows.jsonl", plans(tmp_path, 3)
    crash = Crashed(message="lost", log_tail="", wall_s=1.0)
    measure_all(MEMORY, waits, Scripted(RAN, OOM, crash), watch=watch, file=file, about=ABOUT,
                deadline=time.monotonic() + 999, progress=SILENT)  # fmt: skip
    with file.open("a") as stream:
        stream.write('{"cut off')
    cases = [plan.case for plan in waits]
    assert waiting(cases, {}, own_rows(file, ABOUT)) == [GpuJob(case=cases[2])]
    append(file, {**ABOUT, "name": "next"})
    assert own_rows(file, ABOUT)[-1]["name"] == "next"
    other = {**ABOUT, "versions": {"torch": "2"}}
    assert [job.case for job in waiting(cases, {}, own_rows(file, other))] == cases


def test_a_border_is_done_when_all_its_predictions_are(tmp_path: Path) -> None:
    """Which candidates stand at a border follows from predictions; one that is not measured keeps it open."""
    family = make("m", "lora", 1, 512)
    lower, upper, _ = around(family, 10**9, 8, wide=True)
    cards = {10**9: (family,)}

    def row(case: Case, **more: Any) -> dict[str, Any]:
        return {"name": case.name, "case": {"model": case.model, "card_bytes": case.card_bytes}, **more}

    rows = [row(lower), row(upper), row(lower, outcome="measured")]
    open_job = [GpuJob(case=family, card_bytes=10**9, wide=True)]
    assert waiting([], cards, []) == open_job
    assert waiting([], cards, rows) == open_job
    assert waiting([], cards, [*rows, row(upper, outcome="out_of_memory")]) == []


def line(name: str, error: float, *, needed: int, taken: int, card: int | None = None) -> dict[str, Any]:
    """A measured row of `lora` in GiB."""
    case = make("m", "lora", 1, 512)
    return {
        "name": name,
        "outcome": "measured",
        "case": {"model": "m", "rows": "full", "card_bytes": card, "candidate": case.candidate.to_dict()},
        "predicted": {"needed_bytes": needed * GIB, "context_bytes": 0, "fits": True},
        "measured": {"allocated_bytes": taken * GIB},
        "errors": {"allocated_bytes": error},
    }


def test_the_summary_of_a_table_made_by_hand() -> None:
    """Median and largest error by group; a row well below a card's limit counts for it, and should fit."""
    rows = [
        line("a", 0.01, needed=11, taken=10),  # limits of the cards: 13.4, 20.1 and 40.2 GiB; 85 %: 11.4, 17.1, 34.2
        line("b", -0.03, needed=41, taken=33),
        line("c", 0.02, needed=50, taken=49),
        line("d", 0.5, needed=20, taken=19, card=24 * 10**9),
    ]
    found = summary(rows)
    expected = {"count": 3, "median_abs_error": 0.02, "max_abs_error": 0.03, "worst": "b"}
    assert found["errors"]["allocated_bytes"] == found["groups"]["method"]["lora"] == expected
    assert found["errors"]["reserved_bytes"]["count"] == 0
    assert found["small"] == {"count": 4, "share_fitting": 0.75}
    assert found["cards"]["24 GB"]["fitting_measured"] == 1
    assert found["meets_goal"] is None
    assert summary([*rows, line("a", 0.04, needed=11, taken=10)])["errors"]["allocated_bytes"]["worst"] == "a"


def test_what_is_not_tried_is_told() -> None:
    """A case that nothing foretells, or that should not fit the device, and was not measured after all."""
    fits, case = {"fits": True}, {"card_bytes": None}
    rows = [
        {"kind": "prediction", "name": "unknown", "case": case, "predicted": None, "why": "NotPredicted: so"},
        {"kind": "prediction", "name": "large", "case": case, "predicted": {"fits": False}},
        {"kind": "prediction", "name": "left", "case": case, "predicted": fits},
        {"kind": "prediction", "name": "beyond a card", "case": {"card_bytes": 1}, "predicted": {"fits": False}},
        {"kind": "prediction", "name": "known now", "case": case, "predicted": None},
        {"kind": "measurement", "name": "known now", "case": case, "predicted": fits},
    ]
    assert untried(rows) == [
        {"name": "unknown", "why": "NotPredicted: so"},
        {"name": "large", "why": "it is not predicted to fit"},
    ]


@pytest.mark.parametrize(
    ("worst", "out_of_memory", "met"), [(0.05, False, True), (0.051, False, False), (0.01, True, False)]
)
def test_the_goal(worst: float, out_of_memory: bool, met: bool) -> None:
    """Met by enough rows whose errors are small, and only if nothing that should fit ran out of memory."""
    rows = [line(str(number), 0.01, needed=50, taken=49) for number in range(int(GOAL["rows"]) - 1)]
    rows.append(line("worst", worst, needed=50, taken=49))
    if out_of_memory:
        rows.append({**line("lost", 0.0, needed=50, taken=49), "outcome": "out_of_memory", "measured": None})
    assert summary(rows)["meets_goal"] is met


def test_a_border_is_where_the_prediction_has_it(home: Path, tmp_path: Path, h200: Hardware) -> None:
    """Of the cases around it all fit but the one beyond, and the largest that fits is close to the limit."""
    job = GpuJob(case=make("tiny", "lora", 1, 512), card_bytes=2 * 10**9, wide=True)
    lower, largest, beyond = predict(job, h200, home, tmp_path)
    assert [plan.predicted["fits"] for plan in (lower, largest, beyond)] == [True, True, False]
    assert largest.predicted["needed_bytes"] > 0.9 * largest.predicted["limit_bytes"]
    assert largest.predicted["allocated_bytes"] > sum(largest.predicted["items"].values())
    assert (largest.directory / "model" / "config.json").exists()


def test_the_whole_of_it_on_a_cpu(tmp_path: Path, home: Path) -> None:
    """Two tiny rows through the real trace and the real worker, predictions first, from the rates of another CPU.

    The parts differ in what they sum up.
    """
    hardware = tmp_path / "hardware.json"
    hardware.write_text(json.dumps(read(gpu_suite.RESULTS / "table_tiny-demo.jsonl")[0]["probed"]))
    words = [sys.executable, SCRIPT, "time", "--cpu", "--json", "--hardware", hardware, "--out", tmp_path]
    first = subprocess.run([*words, "--home", home], check=True, capture_output=True, text=True)
    result = json.loads(first.stdout)
    rows = read(tmp_path / gpu_time.TIME.file)
    assert [row["kind"] for row in rows] == ["prediction"] * 2 + ["measurement"] * 2
    assert [row["outcome"] for row in rows[2:]] == ["measured"] * 2, rows
    assert {row["name"] for row in rows[:2]} == {case.name for case in CPU_CASES}
    assert all(max(row["at"] for row in rows[:2]) <= row["at"] for row in rows[2:])
    assert all(row["measured"]["resident_bytes"] > 0 for row in rows[2:])
    assert all(row["errors"] == {"step_s": row["predicted"]["step_s"] / row["measured"]["step_s"] - 1}
               for row in rows[2:])  # fmt: skip
    assert result["rows"] == rows[2:]
    assert (result["count"], result["uncalibrated"]["count"]) == (2, 2)
    assert [result[each] for each in ("left", "untried", "not_predicted", "failed")] == [[]] * 4
    memory = MEMORY.summary(rows[2:])
    assert (memory["count"], memory["errors"]["allocated_bytes"]["count"], memory["failed"]) == (2, 0, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memory", "--every", "0"), "expected a number from 1"),
        (("time", "--cpu", "--hardware", "nowhere.json"), "nowhere.json: cannot be read"),
    ],
)
def test_wrong_input_is_refused(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of the command line, and what is wrong on stderr."""
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *words])
    with pytest.raises(SystemExit) as end:
        gpu_suite.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert said in err


def timed(name: str, spent: tuple[float, ...], measured_s: float) -> dict[str, Any]:
    """A measured row of one model: predicted seconds by what they are spent on, and real ones."""
    return {
        "name": name,
        "outcome": "measured",
        "case": {"model": "m"},
        "predicted": {"step_s": sum(spent), "spent": dict(zip(SPENT, spent, strict=True))},
        "measured": {"step_s": measured_s},
        "errors": {"step_s": sum(spent) / measured_s - 1},
    }


def test_some_rows_correct_the_others() -> None:
    """All is a fifth slower than was predicted: a sixth off before any row, and little behind three that are not
    scored; twice three of seven teach. A crash counts until the case is measured."""
    rows = [timed(str(n), (0.1 * n, 1.0, 0.5 * n, 0.01), 1.2 * (0.6 * n + 1.01)) for n in range(1, 8)]
    found = gpu_time.summary(rows)
    assert (found["count"], found["uncalibrated"]["count"], found["calibrated"]["count"]) == (7, 7, 8)
    assert found["uncalibrated"]["median_abs_error"] == pytest.approx(1 / 6)
    assert found["calibrated"]["median_abs_error"] < 0.05
    assert found["calibrated"]["inside"] == 1.0
    assert found["spearman"] == {"m": pytest.approx(1.0)}
    crashed = {**timed("x", (1.0, 1.0, 1.0, 1.0), 1.0), "outcome": "crashed", "measured": None, "errors": {}}
    again = gpu_time.summary([{**crashed, "name": "1"}, *rows, crashed, {**rows[0], "name": "y", "errors": {}}])
    assert (again["count"], again["not_predicted"]) == (7, ["y"])
    assert [row["name"] for row in again["failed"]] == ["x"]


def test_rows_of_several_models_teach_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has a model after another; what teaches is drawn from all, and the same each time."""
    given: list[list[float]] = []
    monkeypatch.setattr(gpu_time, "verdicts", lambda spent, measured, teaching: given.append(list(measured)) or [])
    rows = [timed(str(n), (1.0, 1.0, 1.0, n), float(n)) for n in range(1, 31)]
    gpu_time.summary(rows)
    assert sorted(given[0]) == list(range(1, 31))
    assert given == [given[0]] * 2
    assert all(max(given[0][i : i + 3]) - min(given[0][i : i + 3]) > 2 for i in range(0, 30, 3))


def test_examples_are_what_their_projects_publish() -> None:
    """By hand, on rows of 1000 tokens, at 16 samples a step; no row is longer than the model takes."""

    def names(published: Settings, method: str, limit: int) -> list[str]:
        work = workload([1000] * 400, method=method, effective_batch_size=16, model={"limit": limit})
        here = context(A100, work=work)
        defaults = baseline(workload=work, hardware=A100, installed=here.installed)[0]
        return [short_name(as_published(knobs, defaults, here)) for knobs in published.values()]

    assert names(LORA_7B, "lora", 8192) == [
        "qlora 2x8 random len 2048 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "lora_int8 2x2 pack_bfd@4096 len 4096 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "lora 1x16 random len 2048 ckpt full sdpa fused bf16+amp bf16",
    ]
    assert names(FULL_0_5B, "full", 8192) == [
        "full 2x8 random len 1024 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "full 4x1 pack_bfd@4096 len 4096 ckpt off sdpa fused bf16+amp bf16",
        "full 2x8 random len 2048 ckpt full sdpa fused fp32+amp bf16",
    ]
    assert names(LORA_7B, "lora", 2048)[1].startswith("lora_int8 2x4 pack_bfd@2048 len 2048")
    short = workload([100] * 400, method="lora", effective_batch_size=16, model={"limit": 8192})
    defaults = baseline(workload=short, hardware=A100, installed=Installed())[0]
    assert as_published(LORA_7B["Axolotl's example"], defaults, context(A100, work=short)).rows_per_step == 1


def test_an_example_that_is_not_legal_is_left_out() -> None:
    """With the reason; of the others every one stands beside TRL's defaults."""
    everything_fits: Any = type("Predictions", (), {"predict": lambda predictions, candidate: Prediction(fits=True)})()
    told: list[str] = []
    for model_type, left_out in (("llama", []), ("opt", ["Axolotl's example"])):
        work = workload(method="lora", effective_batch_size=16, model={"model_type": model_type})
        found = settings_of(context(A100, work=work), everything_fits, LORA_7B, told.append)
        kept = [name for name in LORA_7B if name not in left_out]
        assert list(found) == [gpu_search.DEFAULTS, gpu_search.LARGEST, *kept]
        assert found[gpu_search.LARGEST].per_device_train_batch_size == 16
    assert [line.split(" is left out: ")[0] for line in told] == ["Axolotl's example"]


def test_a_training_is_measured_once(tmp_path: Path) -> None:
    """An earlier process's answer stands, for the same candidate, round and device; a crash is no answer."""
    file, about = tmp_path / "rows.jsonl", {"device": "d", "uuid": "u", "versions": {}, "name": "n"}
    about["data_fingerprint"] = "f"
    request, here = search_request(tmp_path, Recipe(), tmp_path / "search"), context(plain_cpu(), work=workload())
    one, other = (gpu_search.task_of(make("m", "full", rows, 64).candidate, request, here) for rows in (1, 2))
    crash = Crashed(message="lost", log_tail="", wall_s=1.0)
    before = Kept(Scripted(RAN, crash), file, about)
    assert [before.perform(task, limit_s=None) for task in (one, other)] == [RAN, crash]
    now = Kept(Scripted(OOM, RAN), file, about)
    again = [now.perform(task, limit_s=None) for task in (one, other, replace(one, seed=1), other)]
    assert again == [RAN, OOM, RAN, OOM]
    assert Kept(Scripted(OOM), file, {**about, "uuid": "v"}).perform(one, limit_s=None) == OOM
    assert [row["outcome"]["kind"] for row in read(file)] == [
        "measured", "crashed", "out_of_memory", "measured", "out_of_memory",
    ]  # fmt: skip


def test_a_search_ends_with_its_budget(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is in the middle of; and the clock of the next one is its own."""
    told: list[str] = []
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(gpu_search, "probe", lambda **_: time.sleep(60))
    row = gpu_search.run("tiny", data=CONVERSATIONS, minutes=1, out=tmp_path, home=home, deadline=time.monotonic(),
                         use_gpu=False, commit="c", progress=told.append)  # fmt: skip
    assert row == {"name": "tiny", "left": ["tiny"], "rows": []}
    assert told == ["the time is up; the same command goes on"]
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
    monkeypatch.setattr(gpu_search, "probe", lambda **_: here)

    def call(seconds: float) -> dict[str, Any]:
        return gpu_search.run(
            "tiny",
            data=CONVERSATIONS,
            minutes=0.6,  # the first trial waits for the imports
            out=tmp_path,
            home=home,
            deadline=time.monotonic() + seconds,
            use_gpu=False,
            commit="c",
            progress=SILENT,
        )

    assert call(0.1)["left"] == ["tiny"]
    row = call(300.0)
    *trainings, kept = read(tmp_path / gpu_search.FILE)
    assert {**kept, "rows": trainings, "left": []} == row
    assert {gpu_search.FOUND, gpu_search.DEFAULTS, gpu_search.LARGEST, *FULL_0_5B} == kept["rivals"].keys()
    assert len(trainings) == len(kept["rivals"]) * gpu_search.ROUNDS
    assert kept["rivals"][gpu_search.DEFAULTS]["samples_per_step"] == gpu_search.SAMPLES
    for name, knobs in FULL_0_5B.items():
        candidate = kept["rivals"][name]["candidate"]
        assert candidate["weights_dtype"] == knobs["weights_dtype"]
        assert candidate["max_length"] == min(knobs["max_length"], 2048)  # tokens that `tiny` takes
    assert all(rival["outcomes"] == ["measured"] * gpu_search.ROUNDS for rival in kept["rivals"].values())
    assert all(found["ratio"] > 1 for found in kept["speedups"].values())
    assert len(kept["speedups"]) == len(kept["rivals"]) - 1
    monkeypatch.setattr(gpu_search, "search", None)
    assert call(300.0) == row
    (tmp_path / gpu_search.FILE).write_text("".join(json.dumps(each) + "\n" for each in trainings))
    monkeypatch.setattr(gpu_search, "Workers", lambda **_: nullcontext())
    assert call(300.0)["speedups"] == row["speedups"]
