"""Assembly: records written by hand, and the profile that becomes of them."""

from collections.abc import Callable
from typing import Any

import pytest

from autotune.core.step.profile import MONOMIALS, Profile, monomials
from autotune.core.step.regime import Regime, shapes_of
from autotune.trace.assembly import WARMUP, TraceError, assemble, fit
from autotune.trace.operators import Done
from autotune.trace.recorder import Made, Ran, Recorder, Worked

SHAPES = ((2, 8, 14), (4, 8, 28), (2, 16, 30), (4, 16, 60))
Operator = tuple[str, str, int | None, list[str], list[str]]  # name, phase, layer, blocks that are made, that die
Bytes = Callable[[int, int], int]

WEIGHTS = ("load", "load", None, ["weights"], [])
SIZES: dict[str, Bytes] = {
    "weights": lambda B, S: 1000,
    "batch": lambda B, S: 8 * B * S,
    "scratch": lambda B, S: 4 * B,
    "kept": lambda B, S: 4 * B * S,
    "kept too": lambda B, S: 4 * B * S,
    "gradient": lambda B, S: 4 * B * S,
    "logits": lambda B, S: 4 * B * (S - 1),
}
STEP: list[Operator] = [
    ("stack", "batch", None, ["scratch"], []),
    ("pad", "batch", None, ["batch"], ["scratch"]),
    ("aten.mm.default", "forward", 0, ["kept"], []),
    ("aten.exp.default", "forward", 0, ["scratch"], ["scratch"]),
    ("aten.mm.default", "loss", None, ["logits"], []),
    ("aten.sum.default", "backward", None, ["gradient"], ["logits"]),
    ("aten.mul.Tensor", "backward", 0, [], ["kept", "gradient", "batch"]),
]


def recorded(*steps: list[Operator], shapes: Any = SHAPES, owners: dict[str, str] | None = None) -> Recorder:
    """A record of the load, of WARMUP steps at the first shape, and of a step at each shape.

    steps: the operators of each step at a shape; one of them stands for all.
    """
    record = Recorder(masked=False, labels=None, steady=WARMUP)
    living: dict[str, int] = {}
    for number in range(-1, WARMUP + len(shapes)):
        rows, positions, _ = shapes[max(0, number - WARMUP)]
        each = steps[max(0, number - WARMUP)] if len(steps) > 1 else steps[0]
        for name, phase, layer, makes, dies in [WEIGHTS] if number < 0 else each:
            ran = Ran(number, 0 if phase in ("load", "batch") else 1, phase, layer, name, [], [])
            for block in makes:
                living[block] = len(record.made)
                ran.made.append(len(record.made))
                size = SIZES[block](rows, positions)
                owner = (owners or {}).get(block, "weights" if block == "weights" else None)
                record.made.append(Made(size, number, number, ran.micro, phase, layer, owner))
            ran.died += [living[block] for block in dies]
            record.ran.append(ran)
    return record


def assembled(*steps: list[Operator], **rest: Any) -> Profile:
    """The profile of such a record, of a model with one layer."""
    return assemble(recorded(*steps, **rest), SHAPES, depth=1, period=1)


def test_blocks_become_polynomials_with_owners() -> None:
    """A block of the forward that outlives it is an activation; what the backward makes before the layers is the
    loss's."""
    found = [(block.owner, dict(_named(block.size)), block.layer) for block in assembled(STEP).blocks]
    assert found == [
        ("weights", {"1": 1000}, None),
        ("other", {"BS": 8}, None),
        ("activations", {"BS": 4}, 0),
        ("workspace", {"B": 4}, 0),
        ("logits and loss", {"N": 4}, None),
        ("logits and loss", {"BS": 4}, None),
    ]


def test_the_load_holds_what_was_there_before_and_collating_is_one_op() -> None:
    """How many operators collate depends on the rows; what they use up between them is left out."""
    load, collate, *others = assembled(STEP).ops
    assert (load.phase, load.allocates) == ("load", (0,))
    assert (collate.name, collate.phase, collate.allocates, collate.frees) == ("collate", "batch", (1,), ())
    assert [op.name for op in others] == ["mm", "exp", "mm", "sum", "mul.Tensor"]
    assert others[-1].frees == (1, 2, 5)


def test_steps_that_differ_in_structure_are_refused() -> None:
    """Their n-th blocks would not be the same block."""
    longer = [*STEP[:4], ("aten.sin.default", "forward", 0, ["kept too"], ["kept too"]), *STEP[4:]]
    with pytest.raises(TraceError, match=r"from \(2, 8, 14\) to \(4, 16, 60\) .*mm.* becomes .*sin"):
        assembled(STEP, STEP, STEP, longer)


def test_an_op_of_one_layer_frees_no_blocks_of_many() -> None:
    """An autograd function that keeps tensors as attributes frees them with the graph: a release of the whole model."""
    step: list[Operator] = [
        *[
            (f"aten.mm.{layer}", "forward", layer, [block], [])
            for layer, block in enumerate(("kept", "kept too", "batch"))
        ],
        ("aten.mul.Tensor", "backward", 0, ["gradient"], ["kept", "kept too", "batch", "gradient"]),
    ]
    mul, release = assembled(step).ops[-2:]
    assert (mul.name, mul.layer, mul.frees) == ("mul.Tensor", 0, ())
    assert (release.name, release.layer, release.allocates) == ("release", None, ())
    assert len(release.frees) == 4


def test_equal_operators_are_one_entry_of_work() -> None:
    """Its sides are polynomials, and the tensors of a stream are added up."""
    record = recorded(STEP)
    for number, (rows, positions, _) in enumerate(SHAPES):
        size = 4 * rows * positions
        stream = Done("stream", "float32", (size, 2 * size))
        product = Done("product", "float32", (1, rows * positions, 64, 32))
        for layer, done in ((0, product), (0, product), (None, stream)):
            record.worked.append(Worked(WARMUP + number, 1, "forward", layer, done))
    product_work, stream_work = assemble(record, SHAPES, depth=1, period=1).work
    assert (product_work.kind, product_work.count, product_work.layer) == ("product", 2, 0)
    assert [dict(_named(side)) for side in product_work.sides] == [{"1": 1}, {"BS": 1}, {"1": 64}, {"1": 32}]
    assert (stream_work.count, [dict(_named(side)) for side in stream_work.sides]) == (1, [{"BS": 12}])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (lambda B, S: 12, {"1": 12}),
        (lambda B, S: 8 * B * S, {"BS": 8}),
        (lambda B, S: 4 * B * (S - 1), {"N": 4}),
        (lambda B, S: 2 * B * S * S, {"BSS": 2}),
        (lambda B, S: 1000 + 4 * S, {"1": 1000, "S": 4}),
    ],
)
def test_sizes_become_polynomials(size: Bytes, expected: dict[str, int]) -> None:
    """The fewest monomials that give every size."""
    shapes = shapes_of(Regime(one_row=False, beyond_window=False, tiled=False), None)
    values = [monomials(B, S, B * (S - 1)) for B, S, _ in shapes]
    assert _named(fit([size(B, S) for B, S, _ in shapes], values)) == expected


def test_a_size_of_no_two_monomials_is_refused() -> None:
    """A guess would be wrong at every other shape."""
    values = [monomials(*shape) for shape in SHAPES]
    with pytest.raises(TraceError, match="follow no law of two monomials"):
        fit([B + 10 * S + 100 * B * S for B, S, _ in SHAPES], values)


def _named(size: Any) -> dict[str, int]:
    """The monomials of a size that count."""
    return {name: factor for name, factor in zip(MONOMIALS, size, strict=True) if factor}
