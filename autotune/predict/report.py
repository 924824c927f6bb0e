"""How an estimate is shown: lines with bars for people, a row of a table in a sweep, plain values for programs."""

from collections.abc import Iterator, Mapping
from typing import Any

from autotune.core.candidate import short_name
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.space.legality import QUANTIZED
from autotune.core.units import count_of, format_bytes, format_duration
from autotune.predict.alternatives import End
from autotune.predict.estimate import Estimate
from autotune.predict.time import CalibratedTime

NAMED = 3  # levers
LONGEST = 6  # items of a step's time
BAR = 32  # columns of the longest bar
TABLE = (  # headings and widths; the last column is not padded. The first 80 columns answer the usual questions
    ("model", 24),
    ("hardware", 22),
    ("fits", 4),
    ("needs", 8),
    ("limit", 8),
    ("largest batch", 13),
    ("step", 8),
    ("training", 11),
    ("batch", 10),
    ("allocated", 9),
    ("reserved", 8),
    ("device", 8),
    ("candidate", 0),
)
ENDS: Mapping[End, str] = {
    "memory": "",
    "model_limit": " (the model's limit)",
    "data": " (the data has no more)",
    "search_limit": " (no larger one was tried)",
    "not_predicted": " (a larger one cannot be predicted)",
}
PHASES: Mapping[str, str] = {
    "load": "before the step",
    "batch": "fetching the batch",
    "forward": "forward pass",
    "loss": "loss",
    "backward": "backward pass",
    "clip": "clipping of gradients",
    "optimizer": "optimizer step",
    "end": "end of the step",
}


def document(found: Estimate) -> dict[str, Any]:
    """The estimate as plain values, with the keys that docs/interface.md lists."""
    memory, room = found.memory, found.memory.room
    return {
        "fits": memory.fits,
        "short_of": [
            place for place, there in (("device", memory.fits_device), ("host", memory.fits_host)) if not there
        ],
        "limit_bytes": room.limit_bytes,
        "memory": {
            "peak_allocated_bytes": memory.peak.bytes,
            "peak_reserved_bytes": memory.demand.reserved_bytes,
            "device_bytes": memory.device_bytes,
            "peak_phase": memory.peak.phase,
            "peak_operator": memory.peak.op,
            "items": dict(memory.peak.items),
            "fixed_bytes": found.fixed_bytes,
            "phases": dict(memory.demand.phases),
            "context_bytes": room.context_bytes,
            "workspace_bytes": room.workspace_bytes,
            "allowance_bytes": memory.demand.allowance_bytes,
            "needed_bytes": memory.needed_bytes,
            "host_peak_bytes": memory.host_peak_bytes,
            "host_items": dict(memory.demand.host_items),
        },
        "time": None if found.time is None else _time_document(found, found.time),
        "largest": {
            "per_device_train_batch_size": found.largest_rows.value,
            "max_length": found.largest_length.value,
            "ended_by": {
                "per_device_train_batch_size": found.largest_rows.ended_by,
                "max_length": found.largest_length.ended_by,
            },
        },
        "levers": [{"words": each.words, "least_bytes": each.least_bytes} for each in found.levers],
        "suggestions": [
            {
                "candidate": dict(each.changes),
                "needed_bytes": each.memory.needed_bytes,
                "host_peak_bytes": each.memory.host_peak_bytes,
                "fits": each.memory.fits,
            }
            for each in found.suggestions
        ],
        "candidate": found.candidate.to_dict(),
        "batch": {
            "rows": found.batch.rows,
            "positions": found.batch.positions,
            "labels": found.batch.labels,
            "data": found.data,
        },
        "loss": found.loss,
        "model": {
            "name": found.model.name,
            "model_type": found.model.model_type,
            "parameters": found.model.parameters,
            "layers": found.model.layers,
            "limit": found.model.limit,
        },
        "hardware": {
            "name": found.hardware.name,
            "kind": found.hardware.kind,
            "memory_bytes": found.hardware.memory_bytes,
            "used_by_others_bytes": found.hardware.used_by_others_bytes,
            "host_free_bytes": room.host_free_bytes,
        },
        "versions": dict(found.versions),
    }


def _time_document(found: Estimate, time: CalibratedTime) -> dict[str, Any]:
    return {
        "step_s": time.estimate.step_s,
        "interval_s": list(time.interval_s),
        "useful_tokens_per_s": time.useful_tokens_per_s,
        "run_s": found.run_s,
        "cost": found.cost,
        "items": dict(time.estimate.items),
        "basis": "measured" if time.measured else "published",
        "trials": time.trials,
    }


def summary_lines(found: Estimate) -> list[str]:
    """The estimate for a person: whether it fits, what takes the memory and the time, and what else would fit."""
    parts = (_heading(found), _items(found), _growth(found), _sums(found), _time(found), _advice(found))
    return [line for lines in map(list, parts) if lines for line in ("", *lines)][1:]


def table_lines(found: Estimate, *, with_heading: bool) -> list[str]:
    """The estimate as one row of a sweep's table, below the headings where they are asked for."""
    memory, batch = found.memory, found.batch
    row = (
        found.model.name,
        found.hardware.name,
        "yes" if memory.fits else "host" if memory.fits_device else "no",  # host: only the host's memory is too small
        format_bytes(memory.needed_bytes),
        format_bytes(memory.room.limit_bytes),
        "none" if found.largest_rows.value is None else str(found.largest_rows.value),
        "unknown" if found.time is None else format_duration(found.time.estimate.step_s),
        _training(found),
        f"{batch.rows} x {batch.positions}",
        format_bytes(memory.peak.bytes),
        format_bytes(memory.demand.reserved_bytes),
        format_bytes(memory.device_bytes),
        short_name(found.candidate),
    )
    lines = [tuple(heading for heading, _ in TABLE), row] if with_heading else [row]
    widths = [width for _, width in TABLE]
    return ["  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _training(found: Estimate) -> str:
    """The cell of a table for the whole training: its price if one was given, else its time."""
    if found.run_s is None:
        return "unknown"
    return format_duration(found.run_s) if found.cost is None else f"{found.cost:,.2f}"


def _heading(found: Estimate) -> Iterator[str]:
    memory, room, model = found.memory, found.memory.room, found.model
    yield f"{model.name}, {model.parameters:,} parameters: {short_name(found.candidate)}"
    kind = "largest of an epoch" if found.batch.rows > found.candidate.per_device_train_batch_size else "longest rows"
    rows = "full rows" if found.data is None else f"the {kind} of {found.data}"
    yield f"micro-batch {found.batch.rows} x {found.batch.positions} positions, {rows}; loss {found.loss}"
    if not found.candidate.packs and found.candidate.rows_per_step != found.asked_samples:
        knobs = found.candidate
        yield (
            f"a step has {knobs.per_device_train_batch_size} x {knobs.gradient_accumulation_steps} = "
            f"{count_of(knobs.rows_per_step, 'sample')}, not the {found.asked_samples} of recipe.effective_batch_size"
        )
    if emulated := _emulated(found):
        yield emulated
    verdict = "fits" if memory.fits_device else "does not fit"
    yield (
        f"{verdict} on {found.hardware.name}: needs {format_bytes(memory.needed_bytes)}, "
        f"limit {format_bytes(room.limit_bytes)} (90 % of {format_bytes(found.hardware.memory_bytes)}"
        + (f", less {format_bytes(used)} that others hold)" if (used := found.hardware.used_by_others_bytes) else ")")
    )
    if room.host_free_bytes is not None and not memory.fits_host:
        yield (
            f"{'but does not fit' if memory.fits_device else 'nor does it fit'} in the host's memory: needs "
            f"{format_bytes(memory.host_peak_bytes)}, {format_bytes(room.host_free_bytes)} are free"
        )


def _emulated(found: Estimate) -> str | None:
    """A hint where the device has no instructions for what the candidate computes in."""
    knobs, hardware = found.candidate, found.hardware
    in_bf16 = knobs.mixed_precision == "bf16" or (knobs.mixed_precision, knobs.weights_dtype) == ("no", "bfloat16")
    if in_bf16 and hardware.is_slow_in_bf16:
        return f"{hardware.name} is slow in bf16; faster: candidate.mixed_precision=no candidate.weights_dtype=float32"
    if hardware.kind != "cuda" or hardware.supports_bf16 or not in_bf16:
        return None
    fp16 = "" if knobs.method in QUANTIZED else "; it has them for candidate.mixed_precision=fp16"
    return f"{hardware.name} has no instructions for bf16, which is emulated{fp16}"


def _items(found: Estimate) -> Iterator[str]:
    peak = found.memory.peak
    yield f"peak of {format_bytes(peak.bytes)} in the {PHASES[peak.phase]} ({peak.op}):"
    largest = max(peak.items.values())
    for name, count in sorted(peak.items.items(), key=lambda item: -item[1]):
        if count >= peak.bytes / 1000:
            bar = "█" * max(1, round(BAR * count / largest))
            yield f"  {name:18} {format_bytes(count):>9}  {count / peak.bytes:4.0%}  {bar}"


def _growth(found: Estimate) -> Iterator[str]:
    """Which part of the peak grows with the batch, and what would lower it. A peak that grows is not a leak."""
    peak, positions = found.memory.peak.bytes, found.batch.rows * found.batch.positions
    growing = peak - found.fixed_bytes
    if growing * 1000 < peak:
        yield f"the peak is {format_bytes(peak)} for this micro-batch and for every smaller one"
    else:
        yield (
            f"every micro-batch needs {format_bytes(found.fixed_bytes)} of the peak; {format_bytes(growing)} are for "
            f"the {positions} positions of this one, {format_bytes(growing // positions)} each"
        )
    if found.levers:
        yield "what would lower the peak most, and to what at best:"
    for each in found.levers[:NAMED]:
        yield f"  {format_bytes(each.least_bytes):>9}  {each.words}"


def _sums(found: Estimate) -> Iterator[str]:
    memory, room = found.memory, found.memory.room
    yield "peaks by phase    " + ", ".join(
        f"{name} {format_bytes(count)}" for name, count in memory.demand.phases.items()
    )
    if found.hardware.kind == "cuda":
        yield f"reserved by torch {format_bytes(memory.demand.reserved_bytes)}"
        yield (
            f"on the device     {format_bytes(memory.device_bytes)}, with {format_bytes(room.context_bytes)} for the "
            f"context and {format_bytes(room.workspace_bytes)} for workspaces"
        )
    hosted = ", ".join(f"{name} {format_bytes(count)}" for name, count in memory.demand.host_items.items())
    yield f"on the host       {format_bytes(memory.host_peak_bytes)}: {hosted}"


def _time(found: Estimate) -> Iterator[str]:
    """The seconds of a step by item, and where they come from."""
    if (time := found.time) is None:
        return
    step_s, items = time.estimate.step_s, time.estimate.items
    low, high = map(format_duration, time.interval_s)
    basis = "the measured rates" if time.measured else "the published peaks"
    basis += f" of {found.hardware.name}"
    if time.trials:
        basis += f", corrected by {count_of(time.trials, 'trial')} of searches on it"
    yield f"a step takes {format_duration(step_s)}, by {basis} ({low} to {high}):"
    for name, seconds in sorted(items.items(), key=lambda item: -item[1])[:LONGEST]:
        bar = "█" * max(1, round(BAR * seconds / max(items.values())))
        yield f"  {name:29} {format_duration(seconds):>8}  {seconds / step_s:4.0%}  {bar}"
    if time.useful_tokens_per_s is not None:
        yield f"{time.useful_tokens_per_s:,.0f} useful tokens a second"
    if found.run_s is not None:
        cost = "" if found.cost is None else f" and costs {found.cost:,.2f}"
        yield f"the training that is asked for takes {format_duration(found.run_s)}{cost}"


def _advice(found: Estimate) -> Iterator[str]:
    length, rows = found.candidate.row_length, found.candidate.per_device_train_batch_size
    for what, largest in (
        (f"micro-batch at length {length}", found.largest_rows),
        (f"length at micro-batch {rows}", found.largest_length),
    ):
        if largest.value is not None:
            yield f"largest {what}: {largest.value}{ENDS[largest.ended_by]}"
    if found.suggestions:
        yield "what would make it fit:"
    for each in found.suggestions:
        yield f"  {each.words}: {_what_it_needs(each.memory)}"
    if not found.memory.fits and not any(each.memory.fits for each in found.suggestions):
        yield "  nothing that was tried fits; take a larger device, a smaller model, or a shorter length"


def _what_it_needs(memory: MemoryEstimate) -> str:
    if memory.fits_device and not memory.fits_host:
        return f"needs {format_bytes(memory.host_peak_bytes)} of the host's memory, does not fit"
    return f"needs {format_bytes(memory.needed_bytes)}, {'fits' if memory.fits else 'does not fit'}"
