"""Positions: how many tokens of a row a model takes.

Configurations name their limit in many ways, and some limits are hard while others are a promise:

    a table of learned positions    hard. The table may be longer or shorter than the configuration says: some classes
                                    begin behind the padding token (RoBERTa), others add rows to the table (OPT).
    rotary positions                what the model was made for, stretched by some kinds of scaling (`_stretched`)
    ALiBi, relative positions,      no limit, unless the configuration names one
    states (Mamba, RWKV)
    sliding windows                 no limit: they say how far a token looks back
"""

from typing import Any

# Names of the limit, in the order in which they count. `attribute_map` of a configuration maps most to the first.
NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "max_target_positions",
    "n_ctx",
)
TABLES = ("position_embeddings", "embed_positions", "position_embedding", "wpe", "positions_embed", "pos_embed")


def limit_of(text: Any, model: Any) -> int | None:
    """Return how many tokens a row may have; None without a limit.

    text: the model's `get_text_config()`. model: an instance of its class, whose weights are not read.
    """
    named = (getattr(text, name, None) for name in NAMES)
    declared = next((value for value in named if isinstance(value, int) and value > 0), None)
    if getattr(text, "alibi", False):  # of Falcon, whose configuration names a limit for its rotary positions as well
        return None
    if declared is not None:
        declared = _stretched(getattr(text, "rope_parameters", None) or {}, declared)
    return min((limit for limit in (declared, _rows_of_tables(model)) if limit is not None), default=None)


def _stretched(rope: Any, declared: int) -> int:
    """Return the limit under a scaling of rotary positions.

    transformers 5.23 (modeling_rope_utils.py) reads `max_position_embeddings` as the length of the pretraining for
    `linear` and `dynamic`, which a factor of x stretches x times. For `yarn` that length may also stand in
    `original_max_position_embeddings`, and the configuration may have the stretched length already (DeepSeek) or not
    (Qwen2.5). For `longrope` and `llama3` it always has. Scalings that differ between kinds of layers (Gemma 3) leave
    the limit as it is.
    """
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1.0
    if kind in ("linear", "dynamic"):
        return int(declared * factor)
    if kind == "yarn":
        return max(declared, int((rope.get("original_max_position_embeddings") or 0) * factor))
    return declared


def _rows_of_tables(model: Any) -> int | None:
    """Return the positions for which a model has learned embeddings; None without such a table."""
    from torch.nn import Embedding

    rows = []
    for name, module in model.named_modules():
        if isinstance(module, Embedding) and name.rpartition(".")[2] in TABLES and "encoder" not in name.split("."):
            if module.padding_idx is not None:  # the first position stands behind the padding token's
                ahead = 1 if hasattr(model.config, "ngram") else 0  # ProphetNet looks up the next position, too
                rows.append(module.num_embeddings - module.padding_idx - 1 - ahead)
            else:
                rows.append(module.num_embeddings - int(getattr(module, "offset", 0)))
    return min(rows, default=None)
