"""benchmarks/search/planner_speed.py: a command takes what all its processes take, and what is timed works."""

import subprocess
import sys
from dataclasses import replace

import optuna
import pytest

from autotune.core.time.law import time_law
from autotune.core.units import MIB
from autotune.models.catalogue import CONF, catalogued_config
from benchmarks.search.planner_speed import HUB_ID, MODEL, decision_s, plan_space, watched
from tests.core.examples import workload
from tests.core.time.test_law import MACHINE, product, profile

BURNS_S = 0.5
HOLDS = 64 * MIB
# What a server of the command starts, as a trace is; it says when it has been seen for long enough.
BELOW = f"""
import time
held = b"1" * {HOLDS}
while time.process_time() < {BURNS_S}: pass
time.sleep(0.3)
print("done", flush=True)
"""
SERVER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); input()"
COMMAND = """
import subprocess, sys
server = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
server.stdout.readline()
"""


def test_processes_below_the_command_count() -> None:
    """Their time and their memory, though the command never reaps them."""
    took = watched([sys.executable, "-c", COMMAND, SERVER, BELOW])
    assert took["own_s"] >= BURNS_S
    assert took["peak_mib"] >= HOLDS // MIB


def test_a_command_that_fails() -> None:
    """It is no measurement."""
    with pytest.raises(subprocess.CalledProcessError):
        watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_model_of_the_estimate_is_that_of_the_space() -> None:
    """Both names are the catalogue's for it, so no hub is needed."""
    assert f"path: {HUB_ID}\n" in (CONF / "model" / f"{MODEL}.yaml").read_text()
    assert (catalogued_config(HUB_ID) or {})["num_hidden_layers"] == 32


def test_a_space_is_planned_as_a_search_plans_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate of a GPU's space gets a rate; with one law for all, from how it batches alone."""
    monkeypatch.setattr("benchmarks.search.planner_speed.TOKENS", (20, 100))  # short rows, few lengths
    law = time_law(profile(product("forward", 0)), layers=4, accumulation=2)
    facts, gpu = workload(model={"limit": None}).model, replace(MACHINE, kind="cuda", compute_capability=(8, 0))
    found = plan_space(law, {}, facts, gpu)
    assert found["candidates"] > 1000
    assert found["enumerated_s"] > 0
    assert found["planned_s"] > 0


def test_a_decision_is_timed_behind_all_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler is asked as often as is said, each time with another trial in its study: it knows no answer yet."""
    seen: list[int] = []
    monkeypatch.setattr("benchmarks.search.planner_speed.TRIALS", 7)
    monkeypatch.setattr("benchmarks.search.planner_speed.REPEATS", 3)

    def best_next(sampler: object, study: optuna.Study, allowed: object) -> int:
        seen.append(len(study.trials))
        return 0

    monkeypatch.setattr("benchmarks.search.planner_speed.RooflineSampler.best_next", best_next)
    assert decision_s() > 0
    assert seen == [8, 9, 10]
