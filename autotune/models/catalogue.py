"""The catalogue in `conf/`: facts of models and GPUs that need neither the hub nor the machine.

Leaves out what the entries mean (architectures.py, core/gpu_spec.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A wheel carries conf/ inside the package; in a checkout it stands beside it.
TEXT_BACKBONE = ":text"  # behind the name of a model, it asks for the text backbone
CONF = next(place / "conf" for place in Path(__file__).parents if (place / "conf").is_dir())


def catalogued_config(hub_id: str) -> Mapping[str, Any] | None:
    """Return the configuration of a hub model from the catalogue; None when it is not there."""
    import yaml

    for path in sorted((CONF / "model").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if f"\npath: {hub_id}\n" in text:
            config: Mapping[str, Any] | None = yaml.safe_load(text).get("config")
            return config
    return None
