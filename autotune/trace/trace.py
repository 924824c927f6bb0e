"""The trace: what a training step allocates and computes, as a profile of a model of any depth.

A few optimizer steps of the real trainer run on tensors without data (fake_training.py), at different shapes and on a
model of a few layers. From their record comes the profile (assembly.py, core/step/profile.py). A mixture of experts
needs no guess at how tokens are routed: transformers computes all experts in one grouped product, whose size is the
number of tokens times the experts that each token takes.

Leaves out:
- most of the memory that a kernel takes inside one operator; what matters of it is in kernels.py, contracts.py and
  attention_kernels.py;
- torch.compile: Inductor's code cannot run on fake tensors, so the step is traced without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core.step.deepening import repetition, traced_layers, with_growth
from autotune.core.step.profile import Profile
from autotune.core.step.regime import Regime, Shapes, micro_batch, shapes_of
from autotune.trace.assembly import assemble
from autotune.trace.fake_training import Prepare, record_steps
from autotune.trace.offloading import reach
from autotune.trace.request import TraceRequest
from autotune.trace.shallow import layer_kinds, sliding_window


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSetup:
    """What to trace for a request: a model of `depth` layers at all shapes, then one period deeper at the first shape.

    layers: of the whole model. leading, period: how its layers repeat (core/step/profile.py, `repetition`).
    """

    request: TraceRequest
    layers: int
    leading: int
    period: int
    depth: int
    shapes: Shapes

    @property
    def is_whole(self) -> bool:
        """Whether every layer of the model is traced."""
        return self.depth == self.layers


def set_up_trace(request: TraceRequest, *, depth: int | None = None) -> TraceSetup:
    """Choose the depth and the shapes to trace. depth: None takes the fewest layers that stand for all."""
    kinds = layer_kinds(request.config, every=request.candidate.every_n_layers)
    leading, period = repetition(kinds)
    reached = reach(request.candidate, scores_routers=_scores_routers(request.config))
    return TraceSetup(
        request=request,
        layers=len(kinds),
        leading=leading,
        period=period,
        depth=traced_layers(len(kinds), period, leading, reached) if depth is None else depth,
        shapes=traced_shapes(request),
    )


def _scores_routers(config: Mapping[str, Any]) -> bool:
    """Whether TRL adds the routers' losses (trl 1.16, SFTTrainer's `aux_loss_enabled`)."""
    return "output_router_logits" in config and bool(config.get("router_aux_loss_coef"))


def trace(request: TraceRequest, *, depth: int | None = None, prepare: Prepare | None = None) -> Profile:
    """Trace one optimizer step. depth: layers of the traced model; None takes the fewest that stand for all.

    prepare: changes the model before it trains, as another script would; adapters are added unless it added them.
    Raises TraceError when the step's structure depends on its shape, or when its layers do not repeat.
    """
    setup = set_up_trace(request, depth=depth)
    profile = trace_all_shapes(setup, prepare)
    return profile if setup.is_whole else with_growth(profile, trace_deeper(setup, prepare), setup.shapes[0])


def trace_all_shapes(setup: TraceSetup, prepare: Prepare | None = None) -> Profile:
    """Trace `depth` layers at all shapes: the first of two traces."""
    record = record_steps(setup.request, setup.depth, setup.shapes, prepare)
    return assemble(record, setup.shapes, setup.depth, setup.period, setup.leading)


def trace_whole(request: TraceRequest, shape: tuple[int, int, int]) -> Profile:
    """Trace all layers and all micro-steps at one shape (B, S, N), where sizes are then constants.

    Nothing is deduced from fewer layers or other shapes, so tests hold the laws against it.
    """
    setup = set_up_trace(request)
    record = record_steps(request, setup.layers, (shape,), None, request.candidate.gradient_accumulation_steps)
    return assemble(record, (shape,), setup.layers, setup.period, setup.leading)


def trace_deeper(setup: TraceSetup, prepare: Prepare | None = None) -> Profile:
    """Trace one period more at the first shape: the second of two traces, which shows what each layer adds."""
    depth, shapes = setup.depth + setup.period, setup.shapes[:1]
    return assemble(record_steps(setup.request, depth, shapes, prepare), shapes, depth, setup.period, setup.leading)


def traced_shapes(request: TraceRequest) -> Shapes:
    """List the shapes (B, S, N) to trace. On a CPU TRL's head scores every position but the last of each row."""
    rows, _ = micro_batch(request.candidate, 1)
    regime = Regime(one_row=rows == 1, beyond_window=request.beyond_window, tiled=request.tiled, ragged=request.ragged)
    shapes = shapes_of(regime, sliding_window(request.config))
    return tuple((B, S, B * (S - 1) if request.capability is None else N) for B, S, N in shapes)
