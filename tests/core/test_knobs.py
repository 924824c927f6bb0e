"""The table of knobs: it is complete, and what it says of each knob is what the code does with it."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from autotune.core.batches.batches import deal, full_batch, simulate_epoch, worst_batch
from autotune.core.batches.packing import STRATEGIES, pack
from autotune.core.candidate import Candidate, short_name
from autotune.core.knobs import DEFAULTS, KNOBS, TYPES, VALUES, knobs_in, knobs_that_change
from tests.core.examples import candidate, lengths
from tests.core.test_candidate import OTHER_VALUES

ROWS = lengths(np.random.default_rng(0).integers(20, 500, 120))
PACKED = candidate(batching="pack_bfd", max_length=448, packed_length=448)
ALL_KINDS = (candidate(), candidate(batching="group_by_length"), candidate(batching="batch_rebalance"), PACKED)


def changed(one: Candidate, knob: str) -> Candidate:
    """The same with another value of a knob."""
    return replace(one, **{knob: OTHER_VALUES[knob]})


def test_a_candidate_has_every_knob_of_the_table() -> None:
    """A knob has an entry, or a candidate cannot have it."""
    assert tuple(KNOBS) == tuple(field.name for field in fields(Candidate))
    assert {knob for knob in KNOBS if knob not in DEFAULTS} == {
        "max_length",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "method",
    }


@pytest.mark.parametrize("knob", KNOBS)
def test_values_fit_the_type(knob: str) -> None:
    """A number has a least value and lists what is tried; of words and switches each tried value is one of theirs."""
    entry, is_number = KNOBS[knob], TYPES[knob] in (int, int | None)
    assert (entry.least is not None) is is_number
    assert not (is_number and VALUES[knob])
    for value in entry.tried or ():
        assert value is None or (value >= entry.least if is_number else value in VALUES[knob])
    if entry.tried is None and is_number:
        assert knob in knobs_in("step"), "nothing says which numbers to try"


@pytest.mark.parametrize("knob", KNOBS)
def test_what_changes_the_batches(knob: str) -> None:
    """The micro-batches of an epoch, and the largest ones, differ for just the knobs of which the table says so."""

    def batches(one: Candidate) -> Any:
        return simulate_epoch(one, ROWS, seed=0).monomials.tolist(), worst_batch(one, ROWS), full_batch(one)

    differs = [batches(one) != batches(changed(one, knob)) for one in ALL_KINDS]
    assert any(differs) is (knob in knobs_that_change("batches"))


@pytest.mark.parametrize("knob", KNOBS)
def test_what_changes_the_samples_of_a_step(knob: str) -> None:
    """Steps of eight rows hold other samples for just the knobs of which the table says so."""

    def samples(one: Candidate) -> Any:
        """The lengths of the rows in each step."""
        rows = one.per_device_train_batch_size * one.devices
        one = replace(one, gradient_accumulation_steps=8 // rows)
        if one.packs:
            tokens = pack(ROWS.tokens, row_length=one.row_length, strategy=STRATEGIES[one.batching]).row_tokens
        else:
            tokens = np.minimum(ROWS.tokens, one.max_length)
        order, _ = deal(tokens, one)
        return np.sort(tokens[order[: len(order) // 8 * 8]].reshape(-1, 8)).tolist()

    differs = [samples(one) != samples(changed(one, knob)) for one in ALL_KINDS]
    assert any(differs) is (knob in knobs_that_change("samples"))


def test_names_tell_candidates_apart() -> None:
    """But for knobs that no search changes today, and pinned memory, which a search always has."""
    one = replace(PACKED, batching="pack_wrapped", checkpointing="every_n", every_n_layers=4)
    same = {knob for knob in KNOBS if short_name(changed(one, knob)) == short_name(one)}
    assert same == {"dataloader_pin_memory", "devices", "sharding"}
