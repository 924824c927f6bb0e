"""Which types of model keep packed documents apart, so that each has the logits and the loss that it has alone.

    python -m benchmarks.search.documents_apart [--only TYPE ...] [--out FILE] [--json]

Every type of causal language model in transformers is built by its own class, as small as its configuration allows,
with random weights in fp32. Four documents go through it in one row, as TRL packs them: `position_ids` begin anew with
each document, there is no attention mask, and the first token of a document has no label. Then each document goes
through it alone. Dropout and the noise of routers are off. Both are done with eager attention and with sdpa, where the
class supports it. Windows and chunks of attention are shorter than a document.

A type keeps documents apart if logits and loss agree with every attention that it supports. A row also says by how
much the logits differ when nothing tells the documents apart, which shows that the comparison would notice. A type that
cannot be built or run this way has `apart` null and the reason. `DOCUMENTS_KEPT_APART` in core/space/legality.py lists
exactly the types whose row says true.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from autotune.errors import UsageError, first_line
from benchmarks.command import Answer, add_out, command, say
from benchmarks.rows import RESULTS, Row, RowFile, versions

ATTENTIONS = ("eager", "sdpa")
LENGTHS = (9, 12, 5, 7)  # tokens of the documents
AGREE = 1e-4  # the most by which logits may differ, as a share of the largest one; rounding in fp32 makes 1e-6
NOTICE = 1e-2  # the least by which the logits of mixed documents must differ
SCALE = 0.3  # standard deviation of the weights: large enough for attention to matter
WIDTH, FEED_FORWARD, VOCABULARY, POSITIONS = 32, 48, 96, 64
HEADS, KV_HEADS, HEAD_DIM, WINDOW, EXPERTS, CHOSEN = 4, 2, 8, 4, 4, 2
VERDICTS = {"apart": True, "mixed": False, "unknown": None}

# Sizes, and the names that configurations have for them. A smaller value stays as it is.
NAMES: tuple[tuple[int, str], ...] = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input ngram_vocab_size_base"),
    (WIDTH, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim lru_width attention_hidden_size"),
    (WIDTH, "input_embedding_size output_embedding_size word_embed_proj_dim"),
    (FEED_FORWARD, "intermediate_size ffn_dim d_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dim_ff"),
    (FEED_FORWARD, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size feed_forward_size"),
    (FEED_FORWARD, "expert_ffn_hidden_size"),
    (POSITIONS, "max_position_embeddings n_positions n_ctx context_length"),
    (2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_blocks"),
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads index_n_heads"),
    (HEADS, "decoder_attention_heads linear_num_key_heads linear_num_value_heads mamba_n_heads n_mamba_heads"),
    (HEADS, "mamba_num_heads"),
    (HEAD_DIM, "head_dim kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim"),
    (HEAD_DIM, "linear_key_head_dim linear_value_head_dim mamba_d_state ssm_state_size mamba_dt_rank d_head d_kv"),
    (HEAD_DIM, "hidden_size_per_layer_input dim_head"),
    (2 * HEAD_DIM, "qk_head_dim mamba_d_head mamba_head_dim mamba_headdim"),
    (HEAD_DIM // 2, "rotary_dim"),
    (WINDOW, "sliding_window attention_chunk_size local_attention_window_len window_size attention_window_size"),
    (WINDOW, "local_attention mamba_chunk_size index_topk"),
    (EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num"),
    (CHOSEN, "num_experts_per_tok num_experts_per_token moe_topk moe_k"),
    (1, "n_group topk_group num_expert_group n_groups"),
)
SIZES = {name: size for size, names in NAMES for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Values that defaults leave out or switch off, while published models of these types have them.
SET: Mapping[str, Any] = {"sliding_window": WINDOW, "use_sliding_window": True, "head_dim": HEAD_DIM}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BOTH = ["full_attention", "sliding_attention"]
WITHOUT_WINDOWS = ("laguna", "mellum", "ministral", "qwen2", "qwen2_moe", "qwen3", "smollm3")  # by default
# What single types need: kinds of layers that their defaults lack, and values that their class cannot do without.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    **{name: {"layer_types": BOTH} for name in WITHOUT_WINDOWS},
    **{name: {"layer_types": ["conv", "full_attention"]} for name in ("lfm2", "lfm2_moe")},
    "cohere_compass_text": {"layer_types": BOTH, "rope_parameters": dict.fromkeys(BOTH, ROPE)},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": KV_HEADS, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": FEED_FORWARD, "hidden_size": WIDTH},
    },
    "deepseek_v2": {"num_experts_per_tok": CHOSEN},
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"head_dim": 2 * HEAD_DIM},
    "nemotron": {"num_key_value_heads": KV_HEADS},
    "xmod": {"default_language": "en_XX"},
}


def options(parser: argparse.ArgumentParser) -> None:
    """Name the types and the file of rows."""
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types, such as llama")
    add_out(parser, RESULTS / "documents_apart.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Examine the types that have no row of these versions yet; return all rows of these versions, types by verdict."""
    import torch

    torch.set_num_threads(1)  # the models are too small for more
    known = model_types()
    if wrong := sorted({*(arguments.only or ())} - {*known}):
        raise UsageError(*(f"--only: got {each}, expected a type of causal language model" for each in wrong))
    file = RowFile(path=arguments.out, about={"device": "cpu", "versions": versions()})
    done = {row["model_type"] for row in file.own()}
    for model_type in arguments.only or known:
        if model_type not in done:
            row = file.add({"model_type": model_type, **examine(model_type)})
            say(f"{model_type}: {row.get('why') or row['apart']}")
    rows = file.own()
    by_verdict = {
        name: sorted(row["model_type"] for row in rows if row["apart"] is value) for name, value in VERDICTS.items()
    }
    return {"rows": rows, **by_verdict}


def model_types() -> list[str]:
    """List every model type for which transformers has a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def examine(model_type: str) -> Row:
    """Build a model of a type with each attention and compare; the row without its origin."""
    import torch

    found: Row = {"apart": None, "attentions": {}}
    try:
        config = small_config(model_type)
        for attention in ATTENTIONS:
            try:
                model = build(config, attention)
            except ValueError as error:
                if "does not support an attention" not in str(error):
                    raise
                continue
            found["class"] = type(model).__name__
            with torch.no_grad():
                found["attentions"][attention] = compare(model)
    except Exception as error:  # each class raises its own errors over a configuration that it cannot take
        return {**found, "why": f"{type(error).__name__}: {first_line(error)}"[:200]}
    results = found["attentions"].values()
    if any(each["mixed_difference"] < NOTICE for each in results):
        return {**found, "why": "the comparison would not notice mixed documents"}
    return {**found, "apart": all(max(each["logits_difference"], each["loss_difference"]) <= AGREE for each in results)}


def small_config(model_type: str) -> Any:
    """Return the configuration of a type, as small as it may be."""
    from transformers import AutoConfig

    defaults = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **{**shrunk(defaults), **SPECIAL.get(model_type, {})})


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that change, in nested configurations too.

    It is as deep as its list of layer types needs to name each kind once.
    """
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            small[name] = shrunk(value)
        elif name in SET and not value:
            small[name] = SET[name]
        elif name in TOKENS and value is not None:
            small[name] = TOKENS[name]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            small[name] = min(value, SIZES[name])
        elif isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "layerdrop")):
            small[name] = 0.0
    if isinstance(heads := values.get("num_key_value_heads"), int):
        small["num_key_value_heads"] = HEADS if heads == values.get("num_attention_heads") else min(heads, KV_HEADS)
    kinds = {name: value for name, value in values.items() if name.endswith("layer_types") and value}
    if kinds:
        depth = max(2, *(value.index(kind) + 1 for value in kinds.values() for kind in value))
        small |= {name: value[:depth] for name, value in kinds.items()} | {"num_hidden_layers": depth}
    return small


def build(config: Any, attention: str) -> Any:
    """Return a model of random weights in fp32. Raises ValueError for an attention that its class does not support."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, SCALE)
    return model


def compare(model: Any) -> dict[str, float]:
    """Return by how much packed documents differ from the same documents alone.

    logits_difference: the largest, as a share of the largest logit. loss_difference: of the mean over all labels, as a
    share of it. mixed_difference: of logits, where positions go on from one document to the next.
    """
    import torch

    torch.manual_seed(1)
    documents = [torch.randint(3, VOCABULARY, (1, length)) for length in LENGTHS]
    labels = [torch.cat([torch.full((1, 1), -100), document[:, 1:]], dim=1) for document in documents]
    alone = [model(input_ids=d, labels=of, use_cache=False) for d, of in zip(documents, labels, strict=True)]
    row, positions = torch.cat(documents, dim=1), torch.cat([torch.arange(length) for length in LENGTHS])[None]
    packed = model(input_ids=row, position_ids=positions, labels=torch.cat(labels, dim=1), use_cache=False)
    mixed = model(input_ids=row, use_cache=False)
    logits = torch.cat([each.logits for each in alone], dim=1)
    counts = [length - 1 for length in LENGTHS]  # labels of each document
    loss = sum(each.loss * count for each, count in zip(alone, counts, strict=True)) / sum(counts)
    largest = logits.abs().max()
    found = {
        "logits_difference": (packed.logits - logits).abs().max() / largest,
        "loss_difference": (packed.loss - loss).abs() / loss,
        "mixed_difference": (mixed.logits - logits).abs().max() / largest,
    }
    return {name: float(f"{float(value):.3g}") for name, value in found.items()}


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
