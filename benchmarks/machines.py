"""Machines that benchmarks ask about without probing one: the GPUs of the catalogue, and the CPU at hand."""

import os
from functools import cache

import yaml

from autotune.core.gpu_spec import GpuSpec, read_gpu_spec
from autotune.core.hardware import Hardware
from autotune.models.catalogue import CONF


@cache
def catalogued_gpus() -> dict[str, GpuSpec]:
    """Return every GPU of conf/hardware by the name of its file."""
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "hardware").glob("*.yaml")}
    return {name: read_gpu_spec(values["gpu"]) for name, values in sorted(files.items()) if values.get("gpu")}


def plain_cpu() -> Hardware:
    """Return this machine's CPU and memory, as the rules of legality need them; it has no rates."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        kind="cpu",
        name="cpu",
        uuid="cpu",
        memory_bytes=memory_bytes,
        free_bytes=memory_bytes,
        used_by_others_bytes=0,
        cores=os.cpu_count() or 1,
        host_memory_bytes=memory_bytes,
        host_free_bytes=memory_bytes,
        supports_bf16=True,
    )
