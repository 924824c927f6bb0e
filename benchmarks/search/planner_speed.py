"""How fast candidates are planned once a step is traced, how fast the sampler decides, and how long an estimate takes.

    python -m benchmarks.search.planner_speed --json

- `space`: a whole space as a search plans it, from the enumeration to a prediction of each candidate, with every kind
  of step traced before.
- `decision_s`: one decision of `RooflineSampler` behind 200 trials.
- `cold`, `warm`: an estimate of an 8B with LoRA on an A100, with an empty cache and with a full one. The command starts
  a fork server, which starts the processes that trace. `own_s` is the processor time of all of them, `wall_s` what the
  clock shows (other programs delay it), `peak_mib` the most memory that they had resident at a time; what two of them
  share counts twice.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import psutil

from autotune.core.candidate import Fidelity
from autotune.core.hardware import Hardware
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.core.space.context import Installed
from autotune.core.space.enumerate import enumerate_space
from autotune.core.time.law import TimeLaw, time_law_from_dict
from autotune.core.units import MIB
from autotune.core.workload import ModelFacts, Workload
from autotune.machine.installed import installed
from autotune.models.find import resolve_architecture
from autotune.predict.completion import stand_in_data
from autotune.predict.laws import Laws, TimedStep
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import calibrated_speed
from autotune.predict.training import Training
from autotune.search.predictions import Predictions
from autotune.search.roofline import RooflineSampler
from autotune.trace.profiles import Profiles
from benchmarks.command import Answer, command, say
from benchmarks.machines import catalogued_gpus
from benchmarks.rows import now

GPU = "a100_80gb"
MODEL, HUB_ID = "llama_3_1_8b", "meta-llama/Llama-3.1-8B"
ESTIMATE = (f"model={MODEL}", f"hardware={GPU}", "recipe.method=lora", "format=json")
TOKENS, ROWS_OF_DATA = (20, 2000), 10_000  # of the dataset whose space is planned
SPACE, TRIALS = {"a": 10, "b": 10, "c": 5, "d": 4}, 200  # a sampler decides among 2000 candidates
REPEATS = 20
EVERY_S = 0.05  # between looks at the processes; what one does after the last look is not seen


def answer(arguments: argparse.Namespace) -> Answer:
    """Measure everything once."""
    with tempfile.TemporaryDirectory() as home:
        words = [sys.executable, "-m", "autotune", "estimate", *ESTIMATE, f"home={home}"]
        cold, warm = watched(words), watched(words)
        any_law = min((Path(home) / "profiles" / "time").iterdir()).read_text(encoding="utf-8")
        config, facts = resolve_architecture(HUB_ID, None, home=Path(home), progress=say)
    law, hardware = time_law_from_dict(json.loads(any_law)["answer"]), catalogued_gpus()[GPU].hardware(cores=8)
    return {
        "space": plan_space(law, config, facts, hardware),
        "decision_s": decision_s(),
        "cold": cold,
        "warm": warm,
        "estimate": list(ESTIMATE),
        "versions": dict(installed().versions),
        "measured_at": now(),
    }


def watched(command: Sequence[str]) -> dict[str, Any]:
    """Run a command, and return what it and its children took. Raises CalledProcessError when it fails."""
    own_s: dict[psutil.Process, float] = {}  # as last seen
    peak_bytes = 0
    started = time.monotonic()
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as root:
        status = None
        while status is None:
            resident = 0
            for process in _tree(root):
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    resident += process.memory_info().rss
                    own_s[process] = times.user + times.system
            peak_bytes = max(peak_bytes, resident)
            with contextlib.suppress(psutil.TimeoutExpired):
                status = root.wait(timeout=EVERY_S)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {
        "own_s": sum(own_s.values()),
        "wall_s": time.monotonic() - started,
        "peak_mib": peak_bytes // MIB,
    }


def _tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it; none when it is gone."""
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(root.pid), *root.children(recursive=True)]
    return []


def plan_space(law: TimeLaw, config: dict[str, Any], facts: ModelFacts, hardware: Hardware) -> dict[str, Any]:
    """Time how long it takes to list all candidates of LoRA on a made-up dataset, and to predict their speeds.

    Nothing is traced or read, as in a search whose cache has every kind of step. A search times each law once, so each
    kind of step gets a law of its own here, though all of them are equal.
    """
    tokens = np.random.default_rng(0).integers(*TOKENS, ROWS_OF_DATA)
    data = replace(stand_in_data(TOKENS[1]), lengths=Lengths.with_labels_last(tokens, tokens - 1))
    recipe = Recipe(method="lora")
    here: dict[str, Any] = {"workload": Workload(model=facts, data=data, recipe=recipe), "hardware": hardware}
    started = time.perf_counter()
    candidates = enumerate_space(**here, installed=Installed(), fidelity=Fidelity.close, fixed={}).candidates
    enumerated_s = time.perf_counter() - started
    messages: list[str] = []
    training = Training(
        config=config, facts=facts, lengths=data.lengths, recipe=recipe, loss="fused", hardware=hardware, seed=0
    )
    memory = MemoryPredictor.of(training, home=Path(), progress=messages.append)
    predictions = Predictions.of(memory, calibrated_speed(hardware), progress=messages.append)
    laws: dict[TimedStep, TimeLaw] = {}

    def own_law(_: Laws, step: TimedStep) -> TimeLaw:
        return laws.setdefault(step, replace(law))

    with patch.object(Profiles, "trace_missing", return_value={}), patch.object(Laws, "time", own_law):
        started = time.perf_counter()
        predictions.predict_rates(candidates)
        planned_s = time.perf_counter() - started
    if messages:  # a candidate without a prediction takes no time
        raise RuntimeError("; ".join(messages))
    return {"candidates": len(candidates), "enumerated_s": enumerated_s, "planned_s": planned_s}


def decision_s() -> float:
    """Time how long the sampler takes to learn from a trial, to say what can still win, and to propose the next."""
    names = list(SPACE)
    candidates = [dict(zip(names, values, strict=True)) for values in product(*map(range, SPACE.values()))]
    rng = np.random.default_rng(0)
    rates = np.exp(rng.normal(0, 0.3, len(candidates)))
    shares = rng.dirichlet(np.ones(4), len(candidates))
    sampler = RooflineSampler(candidates, rates, shares=shares, seed=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    spaces = {name: optuna.distributions.CategoricalDistribution(range(count)) for name, count in SPACE.items()}
    places = iter(rng.choice(len(candidates), TRIALS + REPEATS, replace=False).tolist())

    def tell() -> None:
        place = next(places)
        value = float(rates[place] * np.exp(rng.normal(0, 0.1)))
        study.add_trial(optuna.create_trial(params=candidates[place], distributions=spaces, value=value))

    def decide() -> None:
        sampler.can_win(study)
        sampler.best_next(study, np.ones(len(candidates), dtype=bool))

    for _ in range(TRIALS):
        tell()
    return median(repeat(decide, setup=tell, number=1, repeat=REPEATS))


main = command(__doc__, answer)

if __name__ == "__main__":
    sys.exit(main())
