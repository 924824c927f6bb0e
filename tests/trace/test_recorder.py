"""The recorder: which storages it notes, when they are freed, and which layer and step they belong to."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.trace.recorder import Made, Ran, Recorder

FLOAT = 4  # bytes


@pytest.fixture
def record() -> Iterator[Recorder]:
    """A recorder in the forward pass of the first step, as on a CPU; every tensor is fake."""
    recorder = Recorder(masked=False, labels=None)
    recorder.step, recorder.micro, recorder.phase = 0, 1, "forward"
    with FakeTensorMode(), recorder:
        yield recorder


def made_by(record: Recorder, name: str) -> list[Made]:
    """The storages that the operators of a name allocated."""
    return [record.made[place] for op in record.ran if name in op.name for place in op.made]


def the_only(record: Recorder, name: str) -> Ran:
    """The one operator of a name that allocated something."""
    [ran] = [op for op in record.ran if name in op.name]
    return ran


def test_a_storage_is_noted_with_its_bytes_and_with_what_freed_it(record: Recorder) -> None:
    """It is freed by the last operator that ran while it lived."""
    one = torch.ones(3, 8)
    two = one.exp()
    del one
    two.sin()
    [exp] = made_by(record, "exp")
    assert (exp.bytes, exp.step, exp.micro, exp.phase) == (3 * 8 * FLOAT, 0, 1, "forward")
    assert the_only(record, "exp").died == the_only(record, "ones").made
    assert the_only(record, "sin").died == the_only(record, "sin").made  # nobody kept its result


def test_a_view_is_no_new_storage(record: Recorder) -> None:
    """Nor is an operator that writes into what is there."""
    whole = torch.zeros(4, 8)
    before = len(record.made)
    part = whole.view(8, 4)[2:].t()
    part.add_(1.0)
    assert len(record.made) == before
    assert record.block_of(part) == record.block_of(whole)


def test_addresses_of_storages_lie_apart(record: Recorder) -> None:
    """Sorted by address, as PyTorch sorts some tensors, views of one storage stay together."""
    one, two = torch.zeros(1000), torch.zeros(1000)
    addresses = [record.address_of(tensor.untyped_storage()) for tensor in (one, two, one.view(10, 100))]
    assert addresses[0] == addresses[2]
    assert addresses[1] - addresses[0] > one.untyped_storage().nbytes()


def test_questions_about_values_have_the_usual_answer() -> None:
    """Fake tensors hold no numbers. A mask is not all ones if rows are padded; losses and norms are finite."""
    for masked in (False, True):
        with FakeTensorMode(), Recorder(masked=masked, labels=None):
            assert bool(torch.ones(4).bool().all()) is not masked
            assert torch.ones(4).sum().item() == 1.0


def test_a_backward_belongs_to_the_layer_of_its_forward() -> None:
    """By the autograd nodes that the layer's forward made."""
    record = Recorder(masked=False, labels=None)
    with FakeTensorMode(), record:
        record.step, record.phase = 0, "forward"
        weight = torch.ones(4, requires_grad=True)
        first = torch._C._autograd._get_sequence_nr()
        hidden = weight.exp()
        record.spans.append((first, torch._C._autograd._get_sequence_nr(), 7))
        loss = hidden.sum()
        record.phase = "backward"
        loss.backward()
    layers = {op.name: op.layer for op in record.ran if op.phase == "backward"}
    assert layers["aten.mul.Tensor"] == 7  # the gradient of exp
    assert layers["aten.ones_like.default"] is None  # of the loss


def test_autocasts_copies_of_weights_are_told_from_other_casts(record: Recorder) -> None:
    """They are kept for the whole step."""
    weight, activation = torch.ones(4), torch.ones(8)
    place = record.block_of(weight)
    assert place is not None
    record.made[place].owner = "weights"
    kept = weight.bfloat16(), activation.bfloat16()
    assert [made.owner for made in made_by(record, "_to_copy")] == ["weight copies", None]
    assert len(kept) == 2


def test_work_counts_from_the_first_steady_step() -> None:
    """Views and what runs outside of a step do no work."""
    record = Recorder(masked=False, labels=None, steady=1)
    with FakeTensorMode(), record:
        one, two = torch.ones(2, 3), torch.ones(3, 5)
        record.micro, record.phase = 1, "forward"
        for record.step in (0, 1):
            (one @ two).t()
    [worked] = record.worked
    assert (worked.step, worked.part, worked.done.kind, worked.done.dtype) == (1, "forward", "product", "float32")


def test_the_last_use_of_a_storage_in_a_forward_is_noted() -> None:
    """A pass without a backward frees it there, even if a backward would keep it."""
    record = Recorder(masked=False, labels=None)
    record.step, record.micro, record.phase = 0, 1, "forward"
    with FakeTensorMode(), record:
        one = torch.ones(4)
        two = one.exp()
        three = (one * two).sin()
        place = record.block_of(one)
    assert place is not None
    assert record.ran[record.used[place]].name == "aten.mul.Tensor"
    assert three.shape == (4,)
