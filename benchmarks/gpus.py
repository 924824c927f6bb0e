"""The GPUs that the catalogue knows, for benchmarks that look one up by its name."""

from functools import cache

import yaml

from autotune.core.gpu_specs import GpuSpec, read_gpu_spec
from autotune.models.catalogue import CONF


@cache
def catalogued_gpus() -> dict[str, GpuSpec]:
    """Return every GPU of conf/hardware by the name of its file."""
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "hardware").glob("*.yaml")}
    return {name: read_gpu_spec(values["gpu"]) for name, values in sorted(files.items()) if values.get("gpu")}
