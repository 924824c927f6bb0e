"""Workers that stand in for the real one where the machine cannot show the case: no GPU, or a process that hangs."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.knobs import Optimizer
from autotune.core.memory.law import Peak
from autotune.core.outcome import Crashed, Measured, Outcome, OutOfMemory, Step, outcome_to_dict
from autotune.core.recipe import Recipe
from autotune.core.time.law import SPENT
from autotune.core.units import MIB
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor, WorstStep
from autotune.predict.step_seconds import StepSeconds
from autotune.predict.time import calibrated_speed
from autotune.predict.training import Training
from autotune.search.predicted_rates import PredictedRates
from autotune.search.predictions import Predictions
from autotune.search.request import SearchRequest
from autotune.train import fork_server, workers
from autotune.train.task import Compare, Measure
from autotune.train.worker import begin
from tests.core.examples import workload

device_is_initialised = False  # as CUDA would be in a process that imported the trainer


STEP = Step(number=0, seconds=0.1, rows=1, positions=1, useful=1, loss=1.0)


def measured() -> Measured:
    """An outcome of made-up figures."""
    return Measured(
        useful_tokens_per_s=100.0,
        relative_error=0.01,
        step_s=1.0,
        peak_bytes=1,
        reserved_bytes=None,
        host_peak_bytes=1,
        steps=(STEP,) * 3,
        warmup_steps=(),
        ended_by="steps",
        reference_flops_per_s=(1.0, 1.0),
        padding_epoch=0.0,
        load_s=0.0,
        wall_s=1.0,
    )


def search_request(home: Path, recipe: Recipe, out: Path, **changes: Any) -> SearchRequest:
    """A search of `tiny` on the demo data, of six trials; keywords change it."""
    request = SearchRequest(
        model="tiny",
        data="demo",
        columns={},
        recipe=recipe,
        fidelity=Fidelity.close,
        fixed={},
        minutes=None,
        trials=6,
        sampler="tpe",
        seed=42,
        out=out,
        home=home,
    )
    return replace(request, **changes)


def training(hardware: Hardware, **changes: Any) -> Training:
    """The training of the examples' model on a machine, without a dataset; keywords change it."""
    values: dict[str, Any] = {
        "config": {},
        "facts": workload().model,
        "lengths": None,
        "recipe": Recipe(),
        "loss": "fused",
        "hardware": hardware,
        "seed": 0,
    }
    return Training(**{**values, **changes})


def predictor(hardware: Hardware, *, home: Path = Path("nowhere"), **changes: Any) -> MemoryPredictor:
    """Predicts that training; nothing is in its cache."""
    return MemoryPredictor.of(training(hardware, **changes), home=home, progress=print)


def predictions(hardware: Hardware, progress: Callable[[str], None] = print) -> Predictions:
    """A search's predictions of that training, which have learned nothing yet."""
    return Predictions.of(predictor(hardware), calibrated_speed(hardware), progress=progress)


Who = Literal["nobody", "by_hand", "all but the baseline", "everybody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the trials of a search meet, if not the formula. It crosses to the worker's process, so it is plain data.

    hangs, crashes: whose trials do. crashes_again: whose repeats do. crawls: who has a rate of 1.
    rows_that_fit: of a micro-batch; a larger one runs out of memory. optimizer_that_fits: any other runs out of memory.
    trial_s: seconds that each trial takes.
    """

    hangs: Who = "nobody"
    crashes: Who = "nobody"
    crashes_again: Who = "nobody"
    crawls: Who = "nobody"
    rows_that_fit: int | None = None
    optimizer_that_fits: Optimizer | None = None
    trial_s: float = 0.0


FORMULA = Scenario()


def is_meant(who: Who, candidate: Candidate) -> bool:
    """Whether a candidate is among those. The references are known by their allocator, which is not tuned."""
    is_baseline = not candidate.tuned_allocator and candidate.checkpointing == "full"
    return {
        "nobody": False,
        "by_hand": not candidate.tuned_allocator and not is_baseline,
        "all but the baseline": not is_baseline,
        "everybody": True,
    }[who]


def predicted_rates(rates: Sequence[float]) -> PredictedRates:
    """Predictions of made-up rates, whose seconds go into everything alike."""
    values = np.array(rates, dtype=np.float64)
    shares = np.full((len(values), len(SPENT)), 1 / len(SPENT))
    return PredictedRates(rates=values, step_s=1 / values, shares=shares, doubt=np.zeros(len(values)))


def serve_and_say_who(connection: Connection, fails: int | None = None) -> None:
    """Say in each step event which process this is and whether it inherited an initialised device.

    fails: which task of this process crashes, from 0.
    """
    for number in itertools.count():
        if connection.recv() is None:
            return
        connection.send({"event": "step", "pid": os.getpid(), "inherited": device_is_initialised})
        outcome = Crashed(message="as asked", log_tail="", wall_s=0.0) if number == fails else measured()
        connection.send({"event": "outcome", "outcome": outcome_to_dict(outcome)})


def serve_and_hang(connection: Connection) -> None:
    """Take a task and never answer, deaf to every signal that can be ignored; start as the real worker does."""
    begin()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.recv()
    connection.send({"event": "loaded", "load_s": 0.0, "pid": os.getpid()})
    time.sleep(3600)


def formula_rate(candidate: Candidate) -> float:
    """A made-up truth: fewer padded positions, no checkpointing and a tuned allocator win."""
    batching = {"random": 1.0, "batch_rebalance": 1.3, "group_by_length": 1.4}.get(candidate.batching, 1.2)
    speed = 100 * batching / candidate.per_device_train_batch_size**0.1
    return speed * (1.3 if candidate.checkpointing == "off" else 1.0) * (1.2 if candidate.tuned_allocator else 1.0)


def formula_peak(candidate: Candidate) -> Peak:
    """A made-up prediction: rows cost memory, twice as much without checkpointing, and so do states of 32 bits."""
    rows = 1000 * MIB * candidate.per_device_train_batch_size * (2 if candidate.checkpointing == "off" else 1)
    states = 0 if candidate.optimizer == "adamw_8bit" else 500 * MIB
    return Peak(bytes=rows + states, phase="backward", op="formula", items={"activations": rows, "states": states})


def formula_losses(candidate: Candidate, goal: Compare) -> tuple[Step, ...]:
    """Made-up losses: another order moves each by 0.2, a tuned allocator by 0.1, which it never should."""
    moved = 0.2 * goal.order + 0.1 * candidate.tuned_allocator
    return tuple(
        Step(number=step, seconds=0.01, rows=8, positions=8, useful=8, loss=5.0 - 0.1 * step + moved)
        for step in range(goal.steps)
    )


def worst_step(candidate: Candidate, peak: Peak, host_bytes: int) -> WorstStep:
    """A step whose memory is made up; nothing else of it is known."""
    unknown: Any = None
    return WorstStep(candidate=candidate, batch=unknown, request=unknown, law=unknown, peak=peak, host_bytes=host_bytes)


def predict_by_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace nothing: memory is predicted by the formula."""

    def by_formula(predictor: MemoryPredictor, candidate: Candidate) -> WorstStep:
        peak = formula_peak(candidate)
        return worst_step(candidate, peak, peak.bytes)

    monkeypatch.setattr(MemoryPredictor, "is_traced", lambda predictor, candidate: True)
    monkeypatch.setattr(MemoryPredictor, "worst_step", by_formula)


def predict_seconds(
    monkeypatch: pytest.MonkeyPatch, step_s: Callable[[Candidate], float], tokens: Callable[[Candidate], int]
) -> None:
    """The same of time: made-up seconds of a step, and useful tokens of it; NotPredicted where `tokens` raises it."""

    def predict_step_seconds(candidates: Sequence[Candidate], **asked: Any) -> StepSeconds:
        spent = np.outer([step_s(each) for each in candidates], (0.1, 0.6, 0.2, 0.1))
        useful_tokens = np.full(len(candidates), np.nan)
        problems = {}
        for place, candidate in enumerate(candidates):
            try:
                useful_tokens[place] = tokens(candidate)
            except NotPredicted as error:
                spent[place], problems[candidate] = np.nan, error
        return StepSeconds(spent=spent, useful_tokens=useful_tokens, problems=problems)

    monkeypatch.setattr("autotune.search.predicted_rates.predict_step_seconds", predict_step_seconds)


def predict_seconds_by_formula(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Predict what the formula gives, multiplied by `factor`."""
    predict_seconds(monkeypatch, lambda candidate: factor * 1000 / formula_rate(candidate), lambda candidate: 1000)


def serve_by_formula(connection: Connection, scenario: Scenario = FORMULA) -> None:
    """Answer at once, by the formula and the scenario."""
    begin()
    while (task := connection.recv()) is not None:
        if is_meant(scenario.hangs, task.candidate):
            time.sleep(3600)
        time.sleep(scenario.trial_s)
        outcome = formula_outcome(task.candidate, task.goal, scenario)
        connection.send({"event": "outcome", "outcome": outcome_to_dict(outcome)})


def formula_outcome(candidate: Candidate, goal: Measure | Compare, scenario: Scenario) -> Outcome:
    """What a trial, a repeat or a comparison of losses ends with."""
    outcome = replace(measured(), useful_tokens_per_s=formula_rate(candidate), wall_s=0.1, step_s=0.01)
    if isinstance(goal, Compare):
        return replace(outcome, steps=formula_losses(candidate, goal))
    if is_meant(scenario.crashes_again if is_repeat(goal) else scenario.crashes, candidate):
        return Crashed(message="as asked", log_tail="", wall_s=0.1)
    fits = scenario.rows_that_fit is None or candidate.per_device_train_batch_size <= scenario.rows_that_fit
    if not fits or scenario.optimizer_that_fits not in (None, candidate.optimizer):
        return OutOfMemory(message="no memory", peak_bytes=1, wall_s=0.1)
    return replace(outcome, useful_tokens_per_s=1.0) if is_meant(scenario.crawls, candidate) else outcome


def is_repeat(goal: Measure) -> bool:
    """Whether a measurement is one of the second, which need not meet the worst batch."""
    return not goal.worst_first


LIGHT = forkserver.ForkServer()


def train_by_formula(monkeypatch: pytest.MonkeyPatch, scenario: Scenario = FORMULA) -> None:
    """Have every worker be one that answers by the formula. It needs no library, so its fork server imports none.

    That is a second fork server: workers that train for real come from the first, which other tests have running.
    """
    monkeypatch.setattr(workers, "serve", partial(serve_by_formula, scenario=scenario))
    monkeypatch.setattr(fork_server, "PRELOAD", ["tests.stand_ins"])
    for name in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
        monkeypatch.setattr(forkserver, name, getattr(LIGHT, name))
