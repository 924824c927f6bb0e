"""A profile can be written down and read back."""

from collections.abc import Sequence

import pytest

from autotune.core.step.profile import MONOMIALS, Block, Op, Phase, Profile, profile_from_dict

ACTIVATION = 3  # the monomial that the bytes of activations go with: BS


class Writer:
    """Write a step down, numbering blocks as they come."""

    def __init__(self, layers: int, period: int) -> None:
        self.layers, self.period = layers, period
        self.blocks: list[Block] = []
        self.ops: list[Op] = []

    def op(
        self,
        name: str,
        phase: Phase,
        layer: int | None,
        made: Sequence[Block],
        freed: Sequence[int] = (),
        used: Sequence[int] = (),
    ) -> list[int]:
        """Append an op that makes blocks, frees others, and uses some last; the numbers of those it made."""
        places = list(range(len(self.blocks), len(self.blocks) + len(made)))
        self.blocks += made
        self.ops.append(
            Op(
                name=name,
                micro=1,
                phase=phase,
                layer=layer,
                allocates=tuple(places),
                frees=tuple(freed),
                last_uses=tuple(used),
            )
        )
        return places

    def profile(self) -> Profile:
        """What was written."""
        return Profile(
            layers=self.layers, period=self.period, micro_steps=1, blocks=tuple(self.blocks), ops=tuple(self.ops)
        )


def block(owner: str, layer: int | None, size: int, monomial: int = 0) -> Block:
    """A block whose bytes go with one monomial."""
    return Block(
        owner=owner, layer=layer, size=tuple(size if place == monomial else 0 for place in range(len(MONOMIALS)))
    )


def step(layers: int, period: int = 1) -> Profile:
    """A step as a decoder has it: what a layer saves dies in its backward, what it hands on dies in its neighbour."""
    writer = Writer(layers, period)
    weights = [block("weights", layer, 100 + layer % period) for layer in range(layers)]
    writer.op("load", "load", None, [block("weights", None, 500), *weights])
    (handed,) = writer.op("embed", "forward", None, [block("activations", None, 7, ACTIVATION)])
    saved = []
    for layer in range(layers):
        saved += writer.op("attend", "forward", layer, [block("activations", layer, 10 + layer % period, ACTIVATION)])
        made = [block("workspace", layer, 2, ACTIVATION)]
        (handed,) = writer.op("hand on", "forward", layer, made, [handed], used=saved[-1:])
    (head,) = writer.op("head", "loss", None, [block("logits and loss", None, 50, ACTIVATION)], [handed])
    (passed,) = writer.op("head backward", "backward", None, [block("workspace", None, 5, ACTIVATION)], [head])
    gradients = []
    for layer in reversed(range(layers)):
        gradients += writer.op(
            "weigh", "backward", layer, [block("gradients", layer, 100 + layer % period)], [saved[layer]]
        )
        (passed,) = writer.op("pass on", "backward", layer, [block("workspace", layer, 5, ACTIVATION)], [passed])
    writer.op("norms", "clip", None, [block("workspace", layer, 4) for layer in range(layers)], [passed])
    norms = list(range(len(writer.blocks) - layers, len(writer.blocks)))
    writer.op("update", "optimizer", None, [block("workspace", None, 1)], sorted([*gradients, *norms]))
    return writer.profile()


def test_a_profile_survives_its_plain_form() -> None:
    """The cache holds JSON."""
    profile = step(5)
    assert profile_from_dict(profile.to_dict()) == profile


def test_a_damaged_profile_is_refused() -> None:
    """A block that is not there would be an error far away."""
    values = step(5).to_dict()
    values["blocks"] = values["blocks"][:-1]
    with pytest.raises(ValueError, match="does not have"):
        profile_from_dict(values)
