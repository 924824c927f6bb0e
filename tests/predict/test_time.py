"""The time of one candidate: from measured or published rates, corrected by trials, or unknown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.core.gpu_spec import GpuSpec
from autotune.core.hardware import Hardware
from autotune.core.step.profile import Profile
from autotune.predict.experience import Taught
from autotune.predict.time import CalibratedTime, calibrated_speed, predict_time
from autotune.trace.profiles import Profiles
from tests.core.examples import CPU, candidate, lengths, workload
from tests.core.time.test_law import MACHINE, product, profile
from tests.stand_ins import predictor

ASKED = candidate(per_device_train_batch_size=2, gradient_accumulation_steps=2)
DEEP = replace(workload().model, layers=5)
GPU = GpuSpec(
    name="a GPU", compute_capability="8.0", memory_gib=1.0, memory_is_reported=True, bandwidth_gb_s=1.0, sm_count=1,
    sources=("made up",), context_mib=0, fp32_tflops=1.0,
).hardware(cores=2)  # fmt: skip


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of one product in each layer stands for every profile."""

    def load(profiles: Profiles, request: Any) -> Profile:
        return profile(product("forward", 0), product("backward", 1))

    monkeypatch.setattr(Profiles, "load", load)


def predicted(
    home: Path, hardware: Hardware = MACHINE, taught: tuple[Taught, ...] = (), rows: Any = range(20, 420), **knobs: Any
) -> CalibratedTime | None:
    of = predictor(hardware, home=home, facts=DEEP, lengths=None if rows is None else lengths(rows))
    speed = calibrated_speed(hardware, taught)
    return predict_time(replace(ASKED, **knobs), batches=of.batches, laws=of.laws, speed=speed)


def test_measured_rates_go_before_published_ones() -> None:
    """A machine of which neither is known has no speed."""
    measured, published = calibrated_speed(MACHINE), calibrated_speed(GPU)
    assert measured is not None
    assert published is not None
    assert (measured.measured, published.measured) == (True, False)
    assert calibrated_speed(CPU) is None


def test_an_epoch_is_timed_and_its_tokens_counted(tmp_path: Path) -> None:
    """400 rows in steps of four are a hundred steps; each row has a label less than tokens."""
    found = predicted(tmp_path)
    assert found is not None
    assert found.interval_s[0] < found.estimate.step_s < found.interval_s[1]
    assert (found.estimate.steps, found.estimate.useful_tokens) == (100, sum(range(19, 419)))
    assert found.useful_tokens_per_s == pytest.approx(sum(range(19, 419)) / (100 * found.estimate.step_s))


def test_without_a_dataset_nobody_knows_how_many_steps(tmp_path: Path) -> None:
    """Unless the recipe says."""
    found = predicted(tmp_path, rows=None)
    assert found is not None
    assert (found.estimate.steps, found.useful_tokens_per_s) == (None, None)


def test_trials_correct_the_prediction(tmp_path: Path) -> None:
    """Three that took twice as long: the seconds of this one rise, and its interval narrows."""
    before = predicted(tmp_path)
    assert before is not None
    spent = tuple(before.estimate.spent.values())
    trials = tuple(Taught(name=str(n), spent=spent, step_s=2 * sum(spent)) for n in range(3))
    after = predicted(tmp_path, taught=trials)
    assert after is not None
    assert (before.trials, after.trials) == (0, 3)
    assert 1.3 < after.estimate.step_s / before.estimate.step_s < 2.0
    assert np.divide(*after.interval_s[::-1]) < np.divide(*before.interval_s[::-1])


@pytest.mark.parametrize("knobs", [{"activation_offloading": True}, {"torch_threads": 1}, {"hardware": CPU}])
def test_what_nobody_measured_is_unknown(tmp_path: Path, knobs: dict[str, Any]) -> None:
    """Activations on their way over the bus, fewer threads than a probe uses, a machine without rates."""
    assert predicted(tmp_path, **knobs) is None
    assert predicted(tmp_path, torch_threads=MACHINE.cores) is not None
