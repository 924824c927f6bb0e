"""The estimate of a candidate's memory: the peaks of its phases, what device and host must have, and whether it fits.

An estimate is made from a profile's law (law.py), a replay through the allocator (replay.py) and a machine
(core/hardware.py). On a CPU there is no caching allocator: reserved bytes are allocated bytes, and both are the sum of
live tensors. Leaves out where profiles come from and which batches a dataset makes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.law import OF_LAYERS, Floats, MemoryLaw, Peak, hosted_bytes, peak, peaks
from autotune.core.memory.replay import Replayed
from autotune.core.step.profile import FORWARD, OFFLOADED, ON_THE_HOST, PAGED, Profile
from autotune.core.units import MIB

MEMORY_SHARE = 0.9  # share of a device's memory that is the limit (docs/interface.md)
SHARD_BYTES = 50 * 10**9  # save_pretrained's max_shard_size (transformers 5.23): bytes that pass the host at once

# Host memory of a process that has imported torch, transformers, trl, peft and bitsandbytes. With the CPU build it is
# the unique set size, 513 MiB, measured with the versions of constraints.txt. With a CUDA build it is a guess on the
# safe side, because the process also maps the driver and loads cuBLAS and cuDNN.
LIBRARY_BYTES = {"cpu": 513 * MIB, "cuda": 3072 * MIB}
LOADERS = 4  # tensors that from_pretrained brings to the device at once (transformers 5.23, GLOBAL_WORKERS)
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"qlora": 0.5, "lora_int8": 1.0}  # of a weight, without its scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory that a machine has for one training.

    limit_bytes: 90 % of the device's memory, less what other processes hold. context_bytes: of the CUDA context.
    workspace_bytes: of cuBLAS. host_free_bytes: None where unknown. on_cpu: whether the device is the host itself.
    """

    limit_bytes: int
    context_bytes: int
    workspace_bytes: int
    host_free_bytes: int | None
    on_cpu: bool = False

    @property
    def host_limit_bytes(self) -> float:
        """The limit on the host; there is none where its memory is unknown."""
        return inf if self.host_free_bytes is None else self.host_free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The memory that a candidate needs on any machine, in bytes.

    peak: of the tensors in a training step. phases: the peaks on the device of all phases. reserved_bytes: the most
    that torch's allocator holds. allowance_bytes: what fragmentation keeps the allocator from giving back.
    host_items: what the host holds at its worst moment.
    """

    peak: Peak
    phases: Mapping[str, int]
    reserved_bytes: int
    allowance_bytes: int
    host_items: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `demand_from_dict` reads them back."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a candidate needs, and what a machine has."""

    demand: Demand
    room: Room

    @property
    def peak(self) -> Peak:
        """The worst moment of a training step."""
        return self.demand.peak

    @property
    def peak_bytes(self) -> int:
        """The largest peak of all phases."""
        return max(self.demand.phases.values())

    @property
    def device_bytes(self) -> int:
        """Bytes that the driver shows for the process at its worst moment."""
        return self.demand.reserved_bytes + self.room.context_bytes + self.room.workspace_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes that the device must have. Cached blocks do not count: they are given back before memory runs out."""
        return self.peak_bytes + self.demand.allowance_bytes + self.room.context_bytes + self.room.workspace_bytes

    @property
    def host_peak_bytes(self) -> int:
        """Bytes that the host holds at its worst moment."""
        return sum(self.demand.host_items.values())

    @property
    def fits_device(self) -> bool:
        """Whether it fits on the device."""
        return self.needed_bytes <= self.room.limit_bytes

    @property
    def fits_host(self) -> bool:
        """Whether it fits in the host's memory, where that is known."""
        return self.host_peak_bytes <= self.room.host_limit_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits on both."""
        return self.fits_device and self.fits_host


def demand_from_dict(values: Mapping[str, Any]) -> Demand:
    """Read a demand back."""
    return Demand(**{**values, "peak": Peak(**values["peak"])})


def room_of(hardware: Hardware) -> Room:
    """The memory that a machine has for one training."""
    return Room(
        limit_bytes=max(0, int(MEMORY_SHARE * hardware.memory_bytes) - hardware.used_by_others_bytes),
        context_bytes=(hardware.context_bytes or 0) if hardware.kind == "cuda" else 0,
        workspace_bytes=(hardware.workspace_bytes or 0) if hardware.kind == "cuda" else 0,
        host_free_bytes=hardware.host_free_bytes,
        on_cpu=hardware.kind == "cpu",
    )


def demand_of(
    profile: Profile, law: MemoryLaw, replayed: Replayed | None, *, candidate: Candidate, batch: Batch
) -> Demand:
    """Find what a candidate needs, given its worst micro-batch.

    profile: of the whole model. law: the profile's. replayed: None on a CPU.
    """
    everywhere = np.array([block.size for block in profile.blocks], dtype=np.float64) @ np.array(batch.monomials)
    sizes = np.where([block.owner in ON_THE_HOST for block in profile.blocks], 0.0, everywhere)
    worst = peak(law, batch.monomials)
    return Demand(
        peak=worst,
        phases={
            "training": worst.bytes,
            "evaluation": _evaluation_bytes(profile, sizes, candidate),
            "saving": _resting_bytes(profile, sizes),
            "loading": _loading_bytes(profile, sizes, candidate),
        },
        reserved_bytes=worst.bytes if replayed is None else replayed.reserved_bytes,
        allowance_bytes=0 if replayed is None else max(0, replayed.needed_bytes - worst.bytes),
        host_items=host_items(law, batch, candidate, on_cpu=replayed is None),
    )


def fitting(
    law: MemoryLaw, shapes: Floats, estimate: MemoryEstimate, candidate: Candidate
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of many micro-batches of a candidate fit, shape (C,).

    shapes: their monomials, (C, M). estimate: of one micro-batch of the candidate. Fragmentation and evaluation are
    assumed to grow with the peak of the step, in the ratio that they have in `estimate`. Loading and saving do not
    depend on the micro-batch.
    """
    room, phases = estimate.room, estimate.demand.phases
    share = 1 + estimate.demand.allowance_bytes / estimate.peak_bytes
    step = peaks(law, shapes) * max(1.0, phases.get("evaluation", 0) / phases["training"])
    alike = max(phases.get("loading", 0), phases.get("saving", 0))
    on_device = np.maximum(step, alike) * share + room.context_bytes + room.workspace_bytes <= room.limit_bytes
    moments = _host_moments(law, shapes, candidate, on_cpu=room.on_cpu)
    on_host = np.max([_total(held) for held in moments], axis=0) <= room.host_limit_bytes
    fits: np.ndarray[tuple[int], np.dtype[np.bool_]] = on_device & on_host
    return fits


def host_items(law: MemoryLaw, batch: Batch, candidate: Candidate, *, on_cpu: bool) -> Mapping[str, int]:
    """What the host holds at its worst moment, in bytes."""
    moments = _host_moments(law, np.array([batch.monomials], dtype=np.float64), candidate, on_cpu=on_cpu)
    worst = max(moments, key=lambda held: float(_total(held)[0]))
    return {name: round(float(count[0])) for name, count in worst.items() if count[0]}


def _resting_bytes(profile: Profile, sizes: Floats) -> int:
    """Bytes between two steps: weights, adapters and optimizer states.

    Saving adds nothing: a state dict refers to the tensors themselves, and they are copied to the host one after
    another. Not counted: transformers merges the experts of some models, and copies them on the device to split them.
    """
    return round(sum(float(sizes[place]) for place in profile.ops[0].allocates))


def _evaluation_bytes(profile: Profile, sizes: Floats, candidate: Candidate) -> int:
    """The peak of a forward pass that saves nothing for a backward pass, with the micro-batch that is trained.

    It is derived from the forward pass of a training step. A block that training would save for the backward pass is
    assumed to live until the layer that made it ends. If a later layer uses it, it lives until its last use. Autocast
    keeps copies of trained weights until the forward pass ends, and keeps none of frozen weights
    (aten/src/ATen/autocast_mode.cpp, cached_cast).
    """
    kept = {"weight copies"} if candidate.method == "full" else set[str]()

    def total(places: Iterable[int]) -> float:
        return sum(float(sizes[place]) for place in places)

    live = worst = float(_resting_bytes(profile, sizes))
    alive: set[int] = set()
    unneeded: set[int] = set()
    for op in profile.ops:
        if op.micro != 1 or op.phase not in FORWARD:
            continue
        over = {place for place in unneeded if profile.blocks[place].layer != op.layer}
        alive = alive.union(op.allocates) - over
        live += total(op.allocates) - total(over)
        worst = max(worst, live)
        gone = alive.intersection(op.frees)
        live -= total(gone)
        alive -= gone
        if op.phase == "forward":
            unneeded.update(place for place in op.last_uses if profile.blocks[place].owner not in kept)
        unneeded &= alive
    return round(worst)


def _loading_bytes(profile: Profile, sizes: Floats, candidate: Candidate) -> int:
    """The peak of loading: all weights, and the largest quantized weight once more, as it was before quantization.

    Only the weights of layers are quantized, not embeddings and the head (transformers 5.23).
    """
    weights = [i for i, block in enumerate(profile.blocks) if block.owner in ("weights", "adapters")]
    quantized = [float(sizes[i]) for i in weights if profile.blocks[i].layer is not None]
    factor = 0.0
    if candidate.method in QUANTIZED_BYTES:
        factor = WEIGHT_BYTES[candidate.weights_dtype] / QUANTIZED_BYTES[candidate.method]
    return round(sum(float(sizes[i]) for i in weights) + factor * max(quantized, default=0.0))


def _host_moments(
    law: MemoryLaw, shapes: Floats, candidate: Candidate, *, on_cpu: bool
) -> Sequence[Mapping[str, Floats]]:
    """What the host holds at three moments: while weights are loaded, in training, and while weights are saved.

    Bytes by item, each of shape (C,). Offloaded activations are pinned, and batches if the data loader pins them.
    """
    libraries = np.full(len(shapes), float(LIBRARY_BYTES["cpu" if on_cpu else "cuda"]))
    if on_cpu:
        return [{"python and libraries": libraries, "tensors": peaks(law, shapes).astype(np.float64)}]

    def held(owner: str, *, pinned: bool = False) -> Floats:
        return hosted_bytes(law, owner, shapes, pinned=pinned)

    always = {"python and libraries": libraries, PAGED: held(PAGED)}
    batches = 2 + candidate.dataloader_num_workers  # one in use, one ahead, and one of each worker
    saved = held("weights" if candidate.method == "full" else "adapters")
    return [
        {"python and libraries": libraries, "loaded weights": np.full(len(shapes), _converted_bytes(law, candidate))},
        {
            **always,
            OFFLOADED: held(OFFLOADED, pinned=True),
            "batches": held("batch", pinned=candidate.dataloader_pin_memory) * batches,
        },
        {**always, "saved weights": np.minimum(saved, SHARD_BYTES)},
    ]


def _converted_bytes(law: MemoryLaw, candidate: Candidate) -> float:
    """Bytes of the tensors that the host converts on their way from a mapped file to the device.

    The host converts a tensor if the file has another dtype than the weights (aten/src/ATen/native/cuda/Copy.cu). The
    dtype of the file is not known here, so all tensors are assumed to be converted: LOADERS of them at once, or one at
    a time with quantization. The device quantizes, and only the weights of layers. The pages of the mapped file
    do not count, because the kernel takes them back at will (safetensors, and .bin since torch 1.6).
    """

    def largest(owner: str) -> list[float]:
        kinds = sorted(law.hosted.get(owner, ()), key=lambda kind: kind[1], reverse=True)
        return [kind[1] for kind in kinds for _ in range(min(LOADERS, round(kind[0])))][:LOADERS]

    if candidate.method in QUANTIZED_BYTES:
        factor = WEIGHT_BYTES[candidate.weights_dtype] / QUANTIZED_BYTES[candidate.method]
        return max([*largest("weights"), *(factor * size for size in largest(OF_LAYERS))], default=0.0)
    return sum(largest("weights"))


def _total(items: Mapping[str, Floats]) -> Floats:
    total: Floats = np.sum(list(items.values()), axis=0)
    return total
