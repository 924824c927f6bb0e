"""Models that cannot be trained to predict the next token, or not by TRL, as far as their class tells.

Leaves out what the files of a model tell before its class is built (find.py, architectures.py).
"""

from collections.abc import Iterator
from typing import Any

# Types whose classes see later tokens and have no flag that says so. benchmarks/results/causal_types.jsonl shows it.
SEE_AHEAD = frozenset({"cpmant", "prophetnet", "xlnet"})
EXPERTS = ("num_experts", "num_experts_per_tok")  # as TRL 1.16 reads them (trainer/utils.py, add_fused_lm_head)
HOW_TO_OMIT = "; set router_aux_loss_coef to 0 in its config.json to train without this loss"
CAPS = ("logits_soft_cap", "output_logit_soft_cap", "logits_mup_width_multiplier")  # which TRL does not read


def why_untrainable(config: Any, model: Any) -> Iterator[str]:
    """Say why a model cannot be trained. model: an instance of its class, whose weights are not read."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    text = config.get_text_config()
    if config.model_type in PROCESSOR_MAPPING_NAMES:  # TRL would load the processor
        yield f"is a {type(model).__name__}, a model of images or sound too, and only text models can be trained"
    elif sees_ahead(model):
        yield (
            f"its attention sees later tokens, as an encoder's does ({type(model).__name__}), so there is nothing to "
            "learn from predicting the next one; expected a decoder"
        )
    elif model.base_model is model:
        yield (
            f"TRL computes the loss from the layers below the head, and {type(model).__name__} does not keep them "
            f"under its base_model_prefix ({model.base_model_prefix})"
        )
    elif skipped := skipped_by_trl(text, model):
        yield f"TRL computes the loss from the layers and the head alone, and would leave out {', '.join(skipped)}"
    elif balances_experts(text) and (lacking := [n for n in EXPERTS if getattr(text, n, None) is None]):
        lacked = " and no ".join(lacking)
        yield f"TRL adds the loss that balances experts, and the configuration has no {lacked}{HOW_TO_OMIT}"
    elif balances_experts(text) and getattr(text, "is_moe", True) is False:
        yield f"TRL adds the loss that balances experts, and the model has none{HOW_TO_OMIT}"


def balances_experts(text: Any) -> bool:
    """Whether TRL adds the auxiliary loss of a mixture of experts. text: the model's `get_text_config()`."""
    return hasattr(text, "output_router_logits") and bool(getattr(text, "router_aux_loss_coef", 0.0))


def skipped_by_trl(text: Any, model: Any) -> list[str]:
    """List what a class does between its layers and its loss that TRL's fused head leaves out (TRL 1.16).

    TRL multiplies the last hidden states by the weights of the head, and knows the names that a cap or a scale of the
    logits has in most configurations. tests/models/test_untrainable.py compares the losses of a few classes.
    """
    body, head = model.base_model_prefix, model.get_output_embeddings()
    heads = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    modules = [
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if not name.startswith(f"{body}.") and id(parameter) not in heads
    ]
    caps = [name for name in CAPS if getattr(text, name, None) is not None]
    return [*dict.fromkeys(modules), *caps]


def sees_ahead(model: Any) -> bool:
    """Whether no attention of a model is causal.

    Most classes mark their attention by `is_causal` or `is_decoder`. Those with no marks are causal, apart from
    SEE_AHEAD. Cross-attention beside causal attention is not causal either.
    """
    marks = [
        mark
        for module in model.modules()
        for name in ("is_causal", "is_decoder")
        if isinstance(mark := getattr(module, name, None), bool)
    ]
    return model.config.model_type in SEE_AHEAD or (bool(marks) and not any(marks))
