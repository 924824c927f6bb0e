"""The surrogate: it believes the prediction until it is measured, and then what was measured."""

from itertools import product
from math import log

import numpy as np
import pytest

from autotune.core.trials.surrogate import Belief, can_still_win, expected_improvement, most_to_gain, surrogate

CANDIDATES = [
    {"rows": rows, "checkpointing": checkpointing, "kernel": kernel}
    for rows, checkpointing, kernel in product((1, 2, 4, 8), ("off", "full"), ("a", "b"))
]
PREDICTED = np.array([5 + 0.1 * each["rows"] - 0.3 * (each["checkpointing"] == "full") for each in CANDIDATES])


def test_without_measurements_the_prediction_is_believed() -> None:
    """Its mean is the prediction, and nothing is certain."""
    belief = surrogate(CANDIDATES, PREDICTED).believe(np.array([], dtype=np.int64), np.array([]), np.array([]))
    assert np.array_equal(belief.mean, PREDICTED)
    assert (belief.deviation > 0.1).all()


def test_what_was_measured_is_believed() -> None:
    """To its error, however far from the prediction; a second measurement halves the variance."""
    model = surrogate(CANDIDATES, PREDICTED)
    once = model.believe(np.array([3]), PREDICTED[[3]] - 0.7, np.array([0.01]))
    assert once.mean[3] == pytest.approx(PREDICTED[3] - 0.7, abs=0.01)
    assert once.deviation[3] == pytest.approx(0.01, rel=0.05)
    twice = model.believe(np.array([3, 3]), PREDICTED[[3, 3]] - 0.7, np.array([0.01, 0.01]))
    assert twice.deviation[3] == pytest.approx(0.01 / np.sqrt(2), rel=0.05)


def test_an_offset_is_learnt_for_all() -> None:
    """A machine that is half as fast as predicted is so for candidates that were not tried, too."""
    tried = np.array([0, 5, 10])
    belief = surrogate(CANDIDATES, PREDICTED).believe(tried, PREDICTED[tried] - log(2), np.full(3, 0.01))
    assert np.abs(belief.mean - (PREDICTED - log(2))).max() < 0.08


def test_a_knob_is_learnt_across_the_others() -> None:
    """Kernel b is slower than predicted wherever it was tried, so it is believed to be elsewhere."""
    slower = np.array([-0.25 * (each["kernel"] == "b") for each in CANDIDATES])
    tried = np.array([0, 1, 6, 7, 12, 13])
    belief = surrogate(CANDIDATES, PREDICTED).believe(tried, (PREDICTED + slower)[tried], np.full(6, 0.01))
    untried = [place for place in range(len(CANDIDATES)) if place not in tried]
    assert np.abs(belief.mean - PREDICTED - slower)[untried].max() < 0.12


def test_a_physical_factor_is_learnt_from_few() -> None:
    """Bandwidth is half of what was thought: who spends much on it is slower, by the share, tried or not."""
    rng = np.random.default_rng(0)
    on_bandwidth = rng.uniform(0.1, 0.9, len(CANDIDATES))
    shares = np.stack([on_bandwidth, 1 - on_bandwidth], axis=1)
    truth = PREDICTED - np.log(2 * on_bandwidth + 1 - on_bandwidth)
    tried = np.array([int(on_bandwidth.argmin()), int(on_bandwidth.argmax()), 7])
    errors = [
        np.abs(surrogate(CANDIDATES, PREDICTED, known).believe(tried, truth[tried], np.full(3, 0.01)).mean - truth)
        for known in (None, shares)
    ]
    assert errors[1].max() < 0.09
    assert errors[1].mean() < errors[0].mean() / 2


def test_a_guess_is_believed_less_than_a_prediction() -> None:
    """What was found of one guess counts for those that share its knobs, and for no prediction."""
    guessed = np.array([each["kernel"] == "b" for each in CANDIDATES])
    model = surrogate(CANDIDATES, PREDICTED, doubt=np.where(guessed, 0.5, 0.0))
    sure = surrogate(CANDIDATES, PREDICTED)
    tried = np.array([0, 4, 8])  # of kernel a
    before, of_sure = (each.believe(tried, PREDICTED[tried], np.full(3, 0.01)) for each in (model, sure))
    assert before.deviation[guessed].min() > 0.5
    assert before.deviation[~guessed] == pytest.approx(of_sure.deviation[~guessed])
    after = model.believe(np.array([*tried, 5]), np.array([*PREDICTED[tried], PREDICTED[5] + 0.7]), np.full(4, 0.01))
    assert (after.mean - PREDICTED)[guessed].min() > 0.2
    assert np.abs(after.mean - PREDICTED)[~guessed].max() < 0.1


def test_expected_improvement_by_hand() -> None:
    """With the mean at the best rate it is deviation / sqrt(2 pi); what is certain and worse improves nothing."""
    belief = Belief(mean=np.array([1.0, 0.5, 2.0]), deviation=np.array([0.2, 0.0, 0.0]))
    improvement = expected_improvement(belief, 1.0)
    assert improvement[0] == pytest.approx(0.2 / np.sqrt(2 * np.pi))
    assert improvement[1] == pytest.approx(0.0, abs=1e-9)
    assert improvement[2] == pytest.approx(1.0)


def test_what_can_still_win_by_hand() -> None:
    """At 97.7 % two deviations count: 1 + 2 x 0.1 exceeds 1.1 by more than 5 %, 0.9 + 2 x 0.1 does not."""
    belief = Belief(mean=np.array([1.0, 0.9]), deviation=np.array([0.1, 0.1]))
    assert can_still_win(belief, 1.1, tolerance=0.05, confidence=0.97725).tolist() == [True, False]


def test_the_most_to_gain_by_hand() -> None:
    """At 97.7 % two deviations count: of those that are allowed the second reaches furthest, 0.1 above the best."""
    belief = Belief(mean=np.array([1.0, 0.9, 2.0]), deviation=np.array([0.0, 0.15, 0.0]))
    allowed = np.array([True, True, False])
    assert most_to_gain(belief, 1.1, allowed, confidence=0.97725) == pytest.approx(np.expm1(0.1), abs=1e-4)
    assert most_to_gain(belief, 1.3, allowed, confidence=0.97725) == 0
    assert most_to_gain(belief, 1.1, np.zeros(3, dtype=bool), confidence=0.97725) == 0
