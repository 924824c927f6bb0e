"""Facts of an architecture: what a model's configuration and its class say, before there are any weights.

The facts are kept under `home`, so that a second look imports neither torch nor transformers. Leaves out where a
configuration is found (find.py).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.decode import decode
from autotune.core.workload import ModelFacts
from autotune.errors import UsageError, first_line
from autotune.models import other_kinds
from autotune.models.positions import limit_of
from autotune.models.target_modules import refused_by_peft
from autotune.models.untrainable import why_untrainable

FORMAT = 3  # of the kept facts; raise it when they change

# Keys of config.json that do not describe the architecture.
NAMES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")

# Keys under which the configurations in transformers count their experts.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def kept_facts(
    home: Path, fingerprint: str, name: str, progress: Callable[[str], None], read: Callable[[], ModelFacts]
) -> ModelFacts:
    """Return the kept facts of an architecture; else call `read` and keep what it finds. A damaged file is replaced."""
    kept = home / "models" / "facts" / f"{fingerprint}-{version('transformers')}-{FORMAT}.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        return decode(known, ModelFacts, where=str(kept))
    except (OSError, ValueError, UsageError):
        progress(f"reading the configuration of {name}")
        facts = read()
        cache.write_text(kept, json.dumps(asdict(facts)))
        return facts


def problems_of_config(config: Mapping[str, Any], where: str, *, text_alone: bool = False) -> list[str]:
    """List the reasons why the model of a configuration cannot be trained.

    where: the model, for the messages. text_alone: whether its text backbone is asked for.
    """
    problems = []
    if "model_type" not in config:
        problems.append(f"{where}/config.json: has no model_type, so transformers cannot tell what it is")
    if quantization := config.get("quantization_config"):
        problems.append(f"{where}: {other_kinds.of_quantization(quantization)}")
    if not text_alone and (config.get("vision_config") is not None or config.get("audio_config") is not None):
        alone = "; behind its name, :text asks for its text backbone alone" if "text_config" in config else ""
        problems.append(f"{where}: is a model of images or sound too, and only text models can be trained{alone}")
    return problems


def class_facts(
    load: Callable[[], Any], values: Mapping[str, Any], *, path: str, name: str, fingerprint: str
) -> ModelFacts:
    """Read the facts of the class that a configuration names, from an instance without memory.

    load: makes the configuration. values: of config.json. Raises UsageError when it is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = load()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        text = config.get_text_config()
        layers, vocabulary = text.num_hidden_layers, text.vocab_size
    except Exception as error:  # a class may raise anything; the configuration is the user's to mend
        raise UsageError(_why_not(path, values, error)) from error
    if layers < 1:
        raise UsageError(f"{path}: num_hidden_layers is {layers}, expected at least 1")
    architectures = config.architectures or type(model).__name__
    named = architectures if isinstance(architectures, str) else architectures[0]
    if named != type(model).__name__:
        expected = f"is a {named}, expected a causal language model ({type(model).__name__})"
        raise UsageError(f"{path}: {other_kinds.of_class(named) or expected}")
    if problems := list(why_untrainable(config, model)):
        raise UsageError(*(f"{path}: {problem}" for problem in problems))
    supported = {
        "eager": True,
        "sdpa": model._supports_sdpa,
        "flash_attention_2": model._supports_flash_attn,
        "flash_attention_3": model._supports_flash_attn,
        "flex_attention": model._supports_flex_attn,
    }
    return ModelFacts(
        path=path,
        name=name,
        model_type=config.model_type,
        parameters=model.num_parameters(),
        layers=layers,
        vocabulary=vocabulary,
        limit=limit_of(text, model),
        attention=tuple(name for name, there in supported.items() if there),
        supports_checkpointing=model.supports_gradient_checkpointing,
        is_mixture_of_experts=any((getattr(text, name, 0) or 0) > 1 for name in EXPERT_COUNTS),
        fingerprint=fingerprint,
        window=sliding_window(text),
        not_adapted=refused_by_peft(model),
    )


def sliding_window(text: Any) -> int | None:
    """Return how many positions a model's sliding window reaches back; None without one.

    text: the model's `get_text_config()`.
    """
    kinds = getattr(text, "layer_types", None)
    window: int | None = getattr(text, "sliding_window", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _why_not(path: str, values: Mapping[str, Any], error: Exception) -> str:
    if "auto_map" in values:
        return f"{path}: needs code of its own from its repository (auto_map), which autotune does not run"
    if "does not recognize this architecture" in str(error) or "Unrecognized model identifier" in str(error):
        known = version("transformers")
        return f"{path}: model_type {values.get('model_type')!r} is unknown to transformers {known}"
    if words := other_kinds.of_class(values.get("architectures")):
        return f"{path}: {words}"
    return f"{path}: is no causal language model that transformers can build ({first_line(error)})"
