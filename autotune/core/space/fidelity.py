"""Fidelity: how far a candidate moves the training from what was asked, knob by knob, each with its reason.

What was asked is what TRL's defaults do with the recipe (trl 1.16):
- fp32 weights under bf16 autocast; a quantized base where the method says so,
- samples in random order, cut at the shortest length that keeps the recipe's coverage,
- fused AdamW.
A value that no departure names is `exact`. Only a legal candidate has a fidelity; legality.py says which are legal.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autotune.core.arithmetic import divisors
from autotune.core.batches.trained import KEEPS_EVERY_TOKEN
from autotune.core.candidate import Candidate, Fidelity
from autotune.core.space.context import Context

# A step of packed rows holds whole rows, so it cannot hold exactly the samples that were asked for. It may miss this
# share of them.
SAMPLES_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One way in which a candidate can depart from what was asked.

    knob: a user who fixes this knob accepts the departure, whatever the fidelity. None: only the fidelity allows it.
    knobs: all that `departs` reads.
    fidelity: the least fidelity that allows it.
    """

    knob: str | None
    knobs: tuple[str, ...]
    fidelity: Fidelity
    reason: str
    departs: Callable[[Candidate, Context], bool]


def samples_per_step(candidate: Candidate, context: Context) -> float:
    """Samples of the dataset that an optimizer step holds on average."""
    per_row = context.packing(candidate).samples_per_row if candidate.packs else 1.0
    return candidate.rows_per_step * per_row


def _asked_samples_missed(c: Candidate, x: Context) -> bool:
    asked = x.workload.recipe.effective_batch_size
    return c.packs and abs(samples_per_step(c, x) / asked - 1) > SAMPLES_TOLERANCE


def _coverage_missed(c: Candidate, x: Context) -> bool:
    if c.batching in KEEPS_EVERY_TOKEN:
        return False
    return c.max_length < x.asked_max_length and (
        x.workload.data.lengths.coverage(c.max_length) < x.workload.recipe.coverage
    )


# Every value that is not exact, with the reason why it is not.
DEPARTURES: tuple[Departure, ...] = (
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.close,
        reason="the same samples an epoch in another order: samples of similar length share a step",
        departs=lambda c, x: c.batching == "group_by_length",
    ),
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.close,
        reason="documents share a row but do not see each other; the samples come in another order",
        departs=lambda c, x: c.batching == "pack_bfd",
    ),
    Departure(
        knob="batching",
        knobs=("batching", "max_length"),
        fidelity=Fidelity.free,
        reason="samples whose labels are all cut off stay in packed rows, and teach nothing in place of others",
        departs=lambda c, x: (
            c.batching == "pack_bfd" and x.workload.data.lengths.rows_left(c.max_length) < x.workload.data.lengths.rows
        ),
    ),
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.free,
        reason="long samples are cut in pieces, and a piece does not see what came before it",
        departs=lambda c, x: c.batching == "pack_bfd_split",
    ),
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.free,
        reason="documents are cut anywhere, and see the other documents before them in the row",
        departs=lambda c, x: c.batching == "pack_wrapped",
    ),
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.free,
        reason="NEFTune scales its noise by the length of a row, and a packed row is longer",
        departs=lambda c, x: c.packs and x.workload.recipe.neftune_noise_alpha is not None,
    ),
    Departure(
        knob="batching",
        knobs=("batching",),
        fidelity=Fidelity.close,
        reason="the experts' balancing loss is a mean over each micro-batch, and its samples are different",
        departs=lambda c, x: c.batching == "batch_rebalance" and x.workload.model.is_mixture_of_experts,
    ),
    Departure(
        knob="max_length",
        knobs=("batching", "max_length"),
        fidelity=Fidelity.free,
        reason="truncation keeps less of the dataset than recipe.coverage asks for",
        departs=_coverage_missed,
    ),
    Departure(
        knob="max_length",
        knobs=("max_length",),
        fidelity=Fidelity.close,
        reason="truncation keeps more of the dataset than recipe.coverage asks for",
        departs=lambda c, x: c.max_length > x.asked_max_length and x.workload.recipe.coverage < 1,
    ),
    Departure(
        knob=None,
        knobs=("batching", "packed_length", "per_device_train_batch_size", "gradient_accumulation_steps", "devices"),
        fidelity=Fidelity.free,
        reason="a step holds whole packed rows, and their samples miss recipe.effective_batch_size by more than 5 %",
        departs=_asked_samples_missed,
    ),
    Departure(
        knob="per_device_train_batch_size",
        knobs=("per_device_train_batch_size",),
        fidelity=Fidelity.close,
        reason="the experts' balancing loss is a mean over each micro-batch, and its size is different",
        departs=lambda c, x: (
            x.workload.model.is_mixture_of_experts
            and c.per_device_train_batch_size != asked_micro_batch(x.workload.recipe.effective_batch_size)
        ),
    ),
    Departure(
        knob="method",
        knobs=("method",),
        fidelity=Fidelity.free,
        reason="another method trains other weights",
        departs=lambda c, x: c.method != x.workload.recipe.asked_method,
    ),
    Departure(
        knob="weights_dtype",
        knobs=("method", "weights_dtype"),
        fidelity=Fidelity.free,
        reason="trained bf16 weights lose most updates: at a learning rate of 2e-5 nearly all are rounded away",
        departs=lambda c, x: c.method == "full" and c.weights_dtype != "float32",
    ),
    Departure(
        knob="weights_dtype",
        knobs=("method", "weights_dtype"),
        fidelity=Fidelity.close,
        reason="the frozen base under the adapters is rounded to the half precision that it was published in",
        departs=lambda c, x: c.method != "full" and c.weights_dtype != "float32",
    ),
    Departure(
        knob="mixed_precision",
        knobs=("mixed_precision",),
        fidelity=Fidelity.close,
        reason="fp16 autocast in place of bf16: finer numbers of a smaller range, and a gradient scaler",
        departs=lambda c, x: c.mixed_precision == "fp16",
    ),
    Departure(
        knob="tf32",
        knobs=("tf32",),
        fidelity=Fidelity.close,
        reason="matrix products of fp32 keep 10 bits of the mantissa",
        departs=lambda c, x: c.tf32,
    ),
    Departure(
        knob="optimizer",
        knobs=("optimizer",),
        fidelity=Fidelity.close,
        reason="the states of AdamW are kept in 8 bits (arXiv:2110.02861)",
        departs=lambda c, x: c.optimizer in ("adamw_8bit", "paged_adamw_8bit"),
    ),
    Departure(
        knob="optimizer",
        knobs=("optimizer",),
        fidelity=Fidelity.free,
        reason="Adafactor is another optimizer than AdamW: it has no first moment and a factored second one",
        departs=lambda c, x: c.optimizer == "adafactor",
    ),
)


def asked_micro_batch(effective_batch_size: int) -> int:
    """Samples of a micro-batch under TRL's defaults: the largest divisor up to transformers' default of 8."""
    return max(divisor for divisor in divisors(effective_batch_size) if divisor <= 8)
