"""How fast candidates are planned once a step was traced, how fast the sampler decides, and how long an estimate takes.

    python -m benchmarks.search.planner_speed --json

Planning is the peak of memory and the seconds of a step of each, one after the other, with tables made anew. A space
is planned as a search does it, from its enumeration to a prediction of each candidate, its kinds of steps traced.
A decision is that of `RooflineSampler` with so many trials behind it. The estimate is that of an 8B with LoRA on an
A100: cold with an empty cache, warm with a full one, each by processes of its own: the command, the fork server that it
starts, and those that trace. `own_s` is the processor time of all of them, `wall_s` what the clock shows (others delay
it), `peak_mib` the most that they had resident at a time, where what two of them share counts twice.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import psutil
import yaml

from autotune.core.batches.batches import Epoch
from autotune.core.candidate import Fidelity
from autotune.core.gpu_specs import read_gpu_spec
from autotune.core.hardware import Hardware
from autotune.core.memory.law import law_from_dict, peaks
from autotune.core.recipe import Recipe
from autotune.core.space.context import Installed
from autotune.core.space.enumerate import enumerate_space
from autotune.core.step.profile import monomials
from autotune.core.time.law import TimeLaw, time_law_from_dict
from autotune.core.time.many_candidates import length_grid, spread, step_seconds, tabulate
from autotune.core.time.published import published_speed
from autotune.core.time.speed import MachineSpeed
from autotune.core.units import MIB
from autotune.core.workload import Lengths, ModelFacts, Workload
from autotune.machine.installed import installed
from autotune.models.catalogue import CONF
from autotune.models.find import resolve_architecture
from autotune.predict.completion import stand_in_data
from autotune.predict.laws import Laws
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import calibrated_speed
from autotune.predict.training import Training
from autotune.search.predictions import Predictions
from autotune.search.roofline import RooflineSampler
from autotune.trace.profiles import Profiles

GPU = "a100_80gb"
MODEL = "llama_3_1_8b"
ESTIMATE = (f"model={MODEL}", f"hardware={GPU}", "recipe.method=lora", "format=json")
CANDIDATES = 100_000
TOKENS, ROWS_OF_DATA = (20, 2000), 10_000  # of the dataset whose space is planned
ROWS, EPOCHS, STEPS, LONGEST = (1, 2, 4, 8, 16, 32, 64), 20, 1000, 8192  # of planned candidates; positions
SPACE, TRIALS = {"a": 10, "b": 10, "c": 5, "d": 4}, 200  # 2000 candidates that a sampler decides among
REPEATS = 20
EVERY_S = 0.05  # between looks at the processes: what one does after the last look at it is not seen


def main() -> None:
    """Measure, and print one JSON object, or lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "autotune", "estimate", *ESTIMATE, f"home={home}"]
        cold, warm = watched(command), watched(command)
        laws = [min((Path(home) / "profiles" / kind).iterdir()) for kind in ("laws", "time")]  # any of them
        memory, seconds = (json.loads(file.read_text(encoding="utf-8"))["answer"] for file in laws)
        config, facts = model_of_estimate(Path(home))
    gpu = read_gpu_spec(yaml.safe_load((CONF / "hardware" / f"{GPU}.yaml").read_text(encoding="utf-8"))["gpu"])
    law = time_law_from_dict(seconds)
    planned_s = memory_s(memory), time_s(law, published_speed(gpu.peaks))
    space = plan_space(law, config, facts, gpu.hardware(cores=8))
    result = {
        "candidates": CANDIDATES,
        "memory_s": planned_s[0],
        "time_s": planned_s[1],
        "space": space,
        "decision_s": decision_s(),
        "cold": cold,
        "warm": warm,
        "estimate": list(ESTIMATE),
        "versions": dict(installed().versions),
        "measured_at": time.strftime("%Y-%m-%d"),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{CANDIDATES:,} candidates: memory in {planned_s[0]:.3f} s, time in {planned_s[1]:.3f} s")
    print(f"a space of {space['candidates']:,} candidates: enumerated in {space['enumerated_s']:.2f} s, "
          f"seconds of each in {space['planned_s']:.2f} s")  # fmt: skip
    print(f"a decision among {prod(SPACE.values())} behind {TRIALS} trials: {result['decision_s']:.3f} s")
    for name, spent in (("cold", cold), ("warm", warm)):
        print(f"{name}: {spent['own_s']:.2f} s of its own, {spent['wall_s']:.2f} s on the clock, "
              f"{spent['peak_mib']} MiB at most")  # fmt: skip


def model_of_estimate(home: Path) -> tuple[dict[str, Any], ModelFacts]:
    """The configuration of MODEL, and what is known of it."""
    model = yaml.safe_load((CONF / "model" / f"{MODEL}.yaml").read_text(encoding="utf-8"))
    return resolve_architecture(model["path"], model["config"], home=home, progress=lambda line: None)


def watched(command: Sequence[str]) -> dict[str, Any]:
    """Run a command, and say what it and its children took. Raises CalledProcessError when it fails."""
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
    """A process and all below it; none when it is gone."""
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(root.pid), *root.children(recursive=True)]
    return []


def memory_s(values: dict[str, Any]) -> float:
    """Seconds for the peaks of many micro-batches of one law, in the median of several repeats."""
    law = law_from_dict(values)
    rng = np.random.default_rng(0)
    rows, lengths = rng.integers(1, 65, CANDIDATES), rng.integers(16, LONGEST, CANDIDATES)
    shapes = np.stack([np.broadcast_to(m, rows.shape) for m in monomials(rows, lengths, rows * (lengths - 1))], axis=1)
    shapes = shapes.astype(np.float64)
    return _median_s(lambda: peaks(law, shapes))


def time_s(law: TimeLaw, speed: MachineSpeed) -> float:
    """Seconds for the step times of as many candidates, of a few numbers of rows and a few ways of batching."""
    rng = np.random.default_rng(0)
    epochs = [
        Epoch(rows=np.full(STEPS, 8), positions=lengths, labels=8 * (lengths - 1))
        for lengths in rng.integers(16, LONGEST, (EPOCHS, STEPS))
    ]
    table_of, epoch_of = rng.integers(len(ROWS), size=CANDIDATES), rng.integers(EPOCHS, size=CANDIDATES)
    accumulation = rng.integers(1, 17, CANDIDATES)

    def plan() -> None:
        grid = length_grid(LONGEST)
        step_seconds(
            [tabulate(law, speed, rows, grid) for rows in ROWS],
            table_of,
            np.stack([spread(epoch, grid) for epoch in epochs]),
            epoch_of,
            new_shapes=np.zeros(CANDIDATES),
            accumulation=accumulation,
        )

    return _median_s(plan)


def plan_space(law: TimeLaw, config: dict[str, Any], facts: ModelFacts, hardware: Hardware) -> dict[str, Any]:
    """Seconds in which all candidates of LoRA on a made-up dataset are listed, and their rates predicted.

    As by a search that has every kind of step in its cache already: nothing is traced or read, and all have one law.
    """
    tokens = np.random.default_rng(0).integers(*TOKENS, ROWS_OF_DATA)
    data = replace(stand_in_data(TOKENS[1]), lengths=Lengths(tokens=tokens, labels=tokens - 1))
    recipe = Recipe(method="lora")
    here: dict[str, Any] = {"workload": Workload(model=facts, data=data, recipe=recipe), "hardware": hardware}
    started = time.perf_counter()
    candidates = enumerate_space(**here, installed=Installed(), fidelity=Fidelity.close, fixed={}).candidates
    enumerated_s = time.perf_counter() - started
    told: list[str] = []
    training = Training(
        config=config, facts=facts, lengths=data.lengths, recipe=recipe, loss="fused", hardware=hardware, seed=0
    )
    memory = MemoryPredictor.of(training, home=Path(), progress=told.append)
    predictions = Predictions(memory=memory, speed=calibrated_speed(hardware), progress=told.append)
    nothing_missing, one_law = lambda *_, **rest: {}, lambda *_: law
    with patch.object(Profiles, "trace_missing", nothing_missing), patch.object(Laws, "time", one_law):
        started = time.perf_counter()
        predictions.predict_rates(candidates)
        planned_s = time.perf_counter() - started
    if told:  # some were not predicted, which is quick
        raise RuntimeError("; ".join(told))
    return {"candidates": len(candidates), "enumerated_s": enumerated_s, "planned_s": planned_s}


def decision_s() -> float:
    """Seconds in which the sampler learns from another trial, says what can still win, and proposes the next."""
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
    return _median_s(decide, before=tell)


def _median_s(work: Callable[[], object], *, before: Callable[[], object] = lambda: None) -> float:
    """The median of several repeats. before: what each needs first, and is not timed."""
    seconds = []
    for _ in range(REPEATS):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
