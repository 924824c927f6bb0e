"""The estimate of a candidate's memory: peaks by phase, what the device and the host must have, and whether it fits.

Puts a profile's law (law.py), a replay through the allocator (replay.py) and a machine (core/hardware.py) together.
Leaves out where profiles come from and what batches a dataset makes.

On a CPU there is no caching allocator: reserved is allocated, and both are the sum of live tensors.
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

MEMORY_SHARE = 0.9  # of what a device can give: the default limit (docs/interface.md)
SHARD_BYTES = 50 * 10**9  # save_pretrained's max_shard_size (transformers 5.23): what passes through the host at once

# Host memory of a process that has imported torch, transformers, trl, peft and bitsandbytes. The CPU build: unique
# set size measured with the versions of constraints.txt, 513 MiB. A CUDA build's is a guess, on the safe side: it
# maps the driver and loads cuBLAS and cuDNN as well.
LIBRARY_BYTES = {"cpu": 513 * MIB, "cuda": 3072 * MIB}
LOADERS = 4  # tensors that from_pretrained brings to the device at once (transformers 5.23, GLOBAL_WORKERS)
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"qlora": 0.5, "lora_int8": 1.0}  # a weight, without its scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a machine lets one training have.

    limit_bytes: 90 % of what the device can give, less what others hold. host_free_bytes: None where unknown.
    on_cpu: whether the device is the host itself.
    """

    limit_bytes: int
    context_bytes: int
    workspace_bytes: int
    host_free_bytes: int | None
    on_cpu: bool = False

    @property
    def host_limit_bytes(self) -> float:
        """What the host may be asked for; where nothing is known of it, anything."""
        return inf if self.host_free_bytes is None else self.host_free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a candidate asks of any machine, in bytes.

    peak: of the tensors in a training step. phases: peaks on the device of the other phases as well. reserved_bytes:
    at most held by torch's allocator. allowance_bytes: what fragmentation keeps it from giving back. host_items: what
    the host holds at its worst moment.
    """

    peak: Peak
    phases: Mapping[str, int]
    reserved_bytes: int
    allowance_bytes: int
    host_items: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `demand_from_dict` reads them back."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """A candidate's demand on a machine."""

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
        """What the driver shows of the process at its worst moment."""
        return self.demand.reserved_bytes + self.room.context_bytes + self.room.workspace_bytes

    @property
    def needed_bytes(self) -> int:
        """What must be there: a process gives its cached blocks back before it runs out of memory."""
        return self.peak_bytes + self.demand.allowance_bytes + self.room.context_bytes + self.room.workspace_bytes

    @property
    def host_peak_bytes(self) -> int:
        """What the host holds at its worst moment."""
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
    """What a machine lets one training have."""
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
    """What a candidate asks whose worst micro-batch is `batch`.

    profile: at its full depth. law: the profile's. replayed: None on a CPU.
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
    """Which of many micro-batches of a candidate fit, shape (C,): fragmentation and evaluation take the share that they
    have in `estimate`; loading and saving depend on no micro-batch. shapes: their monomials, shape (C, M)."""
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
    """What is there between two steps: weights, adapters and optimizer states.

    Saving adds nothing to it: a state dict refers to the tensors themselves, and they are copied to the host one after
    another. Merged experts are copied as they are taken apart, which is not counted.
    """
    return round(sum(float(sizes[place]) for place in profile.ops[0].allocates))


def _evaluation_bytes(profile: Profile, sizes: Floats, candidate: Candidate) -> int:
    """The peak of a forward pass that saves nothing, over the micro-batch that is trained.

    What training saves for the backward of a layer lives here until that layer is over, and what it hands on until its
    last use. Autocast keeps copies of trained weights to the end of the forward, of frozen ones it keeps none
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
    """Weights, and the largest that is quantized once more as it was before. It is read from a mapped file.

    Layers are quantized; embeddings and the head, which belong to none, are not (transformers 5.23).
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
    """What the host holds while weights are loaded, in training, and while they pass through it to be saved.

    Bytes by item, each of shape (C,). Offloaded activations are pinned, batches where the data loader is told to.
    """
    libraries = np.full(len(shapes), float(LIBRARY_BYTES["cpu" if on_cpu else "cuda"]))
    if on_cpu:
        return [{"python and libraries": libraries, "tensors": peaks(law, shapes).astype(np.float64)}]

    def held(owner: str, *, pinned: bool = False) -> Floats:
        return hosted_bytes(law, owner, shapes, pinned=pinned)

    always = {"python and libraries": libraries, PAGED: held(PAGED)}
    batches = 2 + candidate.dataloader_num_workers  # one in use, one ahead, and each worker's
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
    """Tensors on their way from a mapped file to the device, in the dtype of the weights.

    The file's own pages (safetensors, and .bin as torch has written it since 1.6) the kernel takes back at will. A
    tensor of another dtype than the weights is converted on the host (aten/src/ATen/native/cuda/Copy.cu); which the
    file has is not known here, so all are taken for such. LOADERS do it at once, or one if they are then quantized:
    on the device, and those of the layers alone.
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
