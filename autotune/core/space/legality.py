"""Legality: which candidates the installed libraries and this device would refuse, or would train differently.

A rule is a predicate over a candidate and its context, with a reason in a user's words. Nothing here is a matter of
taste or of memory: a legal candidate may be slow, and may not fit. How far a legal candidate moves the training is said
in fidelity.py. The rules are facts about trl 1.16, transformers 5.23, accelerate 1.15, bitsandbytes 0.50 and torch
2.13. tests/core/space/test_legality_against_libraries.py compares them with those libraries.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autotune.core.candidate import Candidate
from autotune.core.space.context import Context

QUANTIZED = ("qlora", "lora_int8")
AMPERE, TURING = (8, 0), (7, 5)

# Model types of transformers 5.23 that keep packed documents apart: each document has the logits and the loss that it
# has alone. benchmarks/results/documents_apart.jsonl has a row for every type, and this list follows from the rows. The
# other types build masks or positions of their own, carry a state from one document into the next, or could not be
# tried.
DOCUMENTS_KEPT_APART = frozenset(
    """
    apertus arcee aria_text axk1 axk2 beam bitnet codegen cohere cohere2 cohere2_moe cohere_compass_text ctrl cwm
    dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text emu3 ernie4_5 ernie4_5_moe
    exaone4 exaone_moe flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text
    gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode
    gpt_neo gpt_neox gpt_neox_japanese gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium
    hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1
    laguna llama llama4 llama4_text longcat_flash mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text
    ministral ministral3 mistral mixtral mllama modernbert-decoder moshi moss_transcribe_diarize nanochat nemotron
    olmo olmo2 olmo3 olmoe persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
    smollm3 solar_open stablelm starcoder2 vaultgemma whisper youtu
    """.split()  # noqa: SIM905  # one name a line would take two pages
)

# Types whose experts mix bf16 and fp32 under autocast, and types whose causal mask is a table as long as the limit.
# benchmarks/models/causal_types.py found them.
WITHOUT_AUTOCAST = frozenset({"dbrx"})
MASK_IS_A_TABLE = frozenset({"gpt_neo"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way in which a candidate can be illegal.

    knobs: all that `broken` reads; no other knob changes its answer.
    refused_by: the error of the library that refuses such a candidate. None where the library silently does something
        else, or nothing at all.
    seen_on: the kind of device on which the library refuses it.
    Only tests read these two: they compare the rules with the installed libraries.
    gains_nothing: whether such a candidate trains as it says, and is left out because another one is at least as good.
        A run may break such a rule.
    """

    name: str
    knobs: tuple[str, ...]
    reason: str
    broken: Callable[[Candidate, Context], bool]
    refused_by: str | None = None
    seen_on: str = "cpu"
    gains_nothing: bool = False


def first_broken(candidate: Candidate, context: Context) -> Rule | None:
    """The first rule of RULES that `candidate` breaks; None when it is legal."""
    return next((rule for rule in RULES if rule.broken(candidate, context)), None)


def _flash_available(attention: str, context: Context) -> bool:
    installed, capability = context.installed, context.hardware.compute_capability
    package = installed.flash_attention_2 if attention == "flash_attention_2" else installed.flash_attention_3
    # when the package is missing, transformers takes the kernel from the hub
    return capability is not None and capability >= AMPERE and (package or installed.kernels)


def _every_n_misplaced(c: Candidate, context: Context) -> bool:
    if c.checkpointing != "every_n":
        return c.every_n_layers != 1
    return not 2 <= c.every_n_layers < context.workload.model.layers


# In the order in which enumerate.py fixes the knobs, so that each rule cuts as early as it can.
RULES: tuple[Rule, ...] = (
    # rows and steps
    Rule(
        name="one_device",
        knobs=("devices", "sharding"),
        reason="training on several devices is not supported yet: it must be devices=1 and sharding=none",
        broken=lambda c, x: c.devices != 1 or c.sharding != "none",
    ),
    Rule(
        name="padding_free_without_max_length",
        knobs=("batching",),
        reason="TRL takes padding_free without packing only when max_length is not set, and we always set it",
        broken=lambda c, x: c.batching == "padding_free",
        refused_by="trl: ValueError: `max_length` is not enforced",
    ),
    Rule(
        name="documents_mixed",
        knobs=("batching",),
        reason="no test has shown for this type of model that packed documents do not see each other",
        broken=lambda c, x: (
            c.batching in ("pack_bfd", "pack_bfd_split") and x.workload.model.model_type not in DOCUMENTS_KEPT_APART
        ),
    ),
    Rule(
        name="packed_length_without_packing",
        knobs=("batching", "packed_length"),
        reason="packed_length goes with a batching that packs, and such a batching needs it",
        broken=lambda c, x: c.packs != (c.packed_length is not None),
    ),
    Rule(
        name="packing_cuts_at_the_row",
        knobs=("batching", "max_length", "packed_length"),
        reason="with packing TRL cuts samples at the row's length alone, so max_length must be packed_length",
        broken=lambda c, x: c.packs and c.max_length != c.packed_length,
    ),
    Rule(
        name="within_model_limit",
        knobs=("max_length",),
        reason="samples or packed rows would be longer than the positions that the model was made for",
        broken=lambda c, x: (limit := x.workload.model.limit) is not None and c.max_length > limit,
    ),
    Rule(
        name="packed_within_the_mask",
        knobs=("batching", "packed_length", "per_device_train_batch_size"),
        reason="TRL puts the packed rows of a micro-batch behind each other, and the model's causal mask is too short",
        broken=lambda c, x: (
            c.packs
            and x.workload.model.model_type in MASK_IS_A_TABLE
            and c.per_device_train_batch_size * c.row_length > (x.workload.model.limit or 0)
        ),
    ),
    Rule(
        name="splits_nothing",
        knobs=("batching", "packed_length"),
        reason="no sample is longer than a row, so pack_bfd_split does what pack_bfd does",
        broken=lambda c, x: c.batching == "pack_bfd_split" and c.row_length >= x.workload.data.lengths.longest,
        gains_nothing=True,
    ),
    Rule(
        name="samples_per_step",
        knobs=("batching", "packed_length", "per_device_train_batch_size", "gradient_accumulation_steps", "devices"),
        reason="a step would not hold recipe.effective_batch_size samples (with packing: the nearest number of rows)",
        broken=lambda c, x: c.gradient_accumulation_steps != x.accumulation(c),
    ),
    Rule(
        name="one_full_step",
        knobs=(
            "batching",
            "max_length",
            "packed_length",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "devices",
        ),
        reason="after the cut at max_length the dataset has fewer rows than one optimizer step",
        broken=lambda c, x: c.rows_per_step > x.rows(c),
    ),
    Rule(
        name="balances_nothing",
        knobs=("batching", "per_device_train_batch_size", "gradient_accumulation_steps"),
        reason="batch_rebalance moves samples between the micro-batches of a step: it needs two of at least two rows",
        broken=lambda c, x: (
            c.batching == "batch_rebalance" and min(c.per_device_train_batch_size, c.gradient_accumulation_steps) < 2
        ),
        gains_nothing=True,
    ),
    Rule(
        name="groups_nothing",
        knobs=("batching", "per_device_train_batch_size"),
        reason="a micro-batch of one row has no padding that grouping by length could save",
        broken=lambda c, x: c.batching == "group_by_length" and c.per_device_train_batch_size < 2,
        gains_nothing=True,
    ),
    # numbers
    Rule(
        name="int8_needs_turing",
        knobs=("method",),
        reason="bitsandbytes asks for compute capability 7.5 for its int8 products",
        broken=lambda c, x: c.method == "lora_int8" and _below(x, TURING),
    ),
    Rule(
        name="fp16_weights_on_a_cpu",
        knobs=("weights_dtype",),
        reason="fp16 weights train only under fp16 mixed precision, which a CPU does not have",
        broken=lambda c, x: c.weights_dtype == "float16" and x.hardware.kind == "cpu",
    ),
    Rule(
        name="fp16_autocast_on_a_cpu",
        knobs=("mixed_precision",),
        reason="on a CPU accelerate accepts fp16 mixed precision and silently computes without it",
        broken=lambda c, x: c.mixed_precision == "fp16" and x.hardware.kind == "cpu",
    ),
    Rule(
        name="autocast_of_the_model",
        knobs=("mixed_precision",),
        reason="the model's class adds bf16 to fp32 under autocast, which torch refuses",
        broken=lambda c, x: c.mixed_precision != "no" and x.workload.model.model_type in WITHOUT_AUTOCAST,
    ),
    Rule(
        name="fp16_weights_trained",
        knobs=("method", "weights_dtype"),
        reason="trained fp16 weights have fp16 gradients, which the gradient scaler refuses",
        broken=lambda c, x: c.method == "full" and c.weights_dtype == "float16",
        refused_by="torch: ValueError: Attempting to unscale FP16 gradients",
        seen_on="cuda",
    ),
    Rule(
        name="fp16_needs_a_scaler",
        knobs=("weights_dtype", "mixed_precision"),
        reason="without fp16 mixed precision nothing scales the gradients of an fp16 base, and small ones become zero",
        broken=lambda c, x: c.weights_dtype == "float16" and c.mixed_precision != "fp16",
    ),
    Rule(
        name="two_half_types",
        knobs=("weights_dtype", "mixed_precision"),
        reason="bf16 weights under fp16 autocast are converted for every matrix product, which gains nothing",
        broken=lambda c, x: c.weights_dtype == "bfloat16" and c.mixed_precision == "fp16",
        gains_nothing=True,
    ),
    Rule(
        name="quantized_under_fp16",
        knobs=("method", "mixed_precision"),
        reason="TRL gives a quantized base bf16 adapters, and the gradient scaler of fp16 refuses them (trl#4901)",
        broken=lambda c, x: c.method in QUANTIZED and c.mixed_precision == "fp16",
        refused_by="torch: NotImplementedError: not implemented for 'BFloat16'",
        seen_on="cuda",
    ),
    Rule(
        name="tf32_needs_ampere",
        knobs=("tf32",),
        reason="tf32 needs a GPU of compute capability 8.0",
        broken=lambda c, x: c.tf32 and not x.hardware.supports_tf32,
        refused_by="transformers: ValueError: --tf32 requires Ampere",
    ),
    Rule(
        name="compiling_turns_tf32_on",
        knobs=("torch_compile", "mixed_precision", "tf32"),
        reason="accelerate turns tf32 on when it compiles without mixed precision, so candidate.tf32=false is not kept",
        broken=lambda c, x: c.torch_compile and c.mixed_precision == "no" and not c.tf32 and x.hardware.supports_tf32,
    ),
    Rule(
        name="tf32_changes_nothing",
        knobs=("weights_dtype", "mixed_precision", "tf32"),
        reason="tf32 speeds up nothing but matrix products of fp32, and in half precision there are none",
        broken=lambda c, x: c.tf32 and (c.weights_dtype, c.mixed_precision) != ("float32", "no"),
        gains_nothing=True,
    ),
    # activations
    Rule(
        name="model_cannot_checkpoint",
        knobs=("checkpointing",),
        reason="the model's class does not support activation checkpointing",
        broken=lambda c, x: c.checkpointing != "off" and not x.workload.model.supports_checkpointing,
        refused_by="transformers: ValueError: does not support activation checkpointing",
    ),
    Rule(
        name="every_n_misplaced",
        knobs=("checkpointing", "every_n_layers"),
        reason="with checkpointing=every_n, every_n_layers is at least 2 and below the number of layers; else it is 1",
        broken=_every_n_misplaced,
    ),
    Rule(
        name="offloading_needs_a_gpu",
        knobs=("activation_offloading",),
        reason="activations are offloaded from an accelerator to the host, and there is no accelerator",
        broken=lambda c, x: c.activation_offloading and x.hardware.kind == "cpu",
        refused_by="trl: AttributeError: 'NoneType' object has no attribute 'type'",
    ),
    # kernels
    Rule(
        name="attention_of_the_model",
        knobs=("attention",),
        reason="the model's class does not support this attention",
        broken=lambda c, x: c.attention not in x.workload.model.attention,
        refused_by="transformers: ValueError: does not support",
    ),
    Rule(
        name="flash_attention_missing",
        knobs=("attention",),
        reason="needs a GPU of compute capability 8.0, and the package flash-attn (or flash-attn-3, or kernels)",
        broken=lambda c, x: c.attention.startswith("flash_attention") and not _flash_available(c.attention, x),
        refused_by="transformers: ImportError: has been toggled on, but it cannot be used",
    ),
    Rule(
        name="flex_needs_a_gpu",
        knobs=("attention",),
        reason="flex attention has no backward on a CPU",
        broken=lambda c, x: c.attention == "flex_attention" and x.hardware.kind == "cpu",
        refused_by="torch: NotImplementedError: FlexAttention does not support backward on CPU",
    ),
    Rule(
        name="flash_needs_half_precision",
        knobs=("attention", "weights_dtype", "mixed_precision"),
        reason="FlashAttention computes in fp16 and bf16 only",
        broken=lambda c, x: (
            c.attention.startswith("flash_attention") and (c.weights_dtype, c.mixed_precision) == ("float32", "no")
        ),
        refused_by="flash-attn: RuntimeError: FlashAttention only support fp16 and bf16",
        seen_on="cuda",
    ),
    Rule(
        name="selective_saves_nothing",
        knobs=("checkpointing", "attention"),
        reason="selective checkpointing keeps outputs of sdpa and FlashAttention; with another attention it is full",
        broken=lambda c, x: c.checkpointing == "selective" and c.attention in ("eager", "flex_attention"),
    ),
    Rule(
        name="paging_needs_a_gpu",
        knobs=("optimizer",),
        reason="on a CPU bitsandbytes accepts a paged optimizer and silently uses the one that is not paged",
        broken=lambda c, x: c.optimizer == "paged_adamw_8bit" and x.hardware.kind == "cpu",
    ),
    Rule(
        name="compile_needs_a_compiler",
        knobs=("torch_compile",),
        reason="torch.compile needs a C++ compiler (install g++ or clang++)",
        broken=lambda c, x: c.torch_compile and not x.installed.cpp_compiler,
        refused_by="torch: InvalidCxxCompiler",
    ),
    Rule(
        name="kernels_missing",
        knobs=("use_kernels",),
        reason="kernels of the hub need the package kernels",
        broken=lambda c, x: c.use_kernels and not x.installed.kernels,
        refused_by="transformers: ValueError: Kernels are not available",
    ),
    # the process
    Rule(
        name="more_workers_than_cores",
        knobs=("dataloader_num_workers",),
        reason="more loader workers than this machine has cores",
        broken=lambda c, x: c.dataloader_num_workers > x.hardware.cores,
        gains_nothing=True,
    ),
    Rule(
        name="more_threads_than_cores",
        knobs=("torch_threads",),
        reason="more threads than this machine has cores",
        broken=lambda c, x: (c.torch_threads or 0) > x.hardware.cores,
        gains_nothing=True,
    ),
    Rule(
        name="threads_on_a_gpu",
        knobs=("torch_threads",),
        reason="torch_threads is for training on a CPU",
        broken=lambda c, x: c.torch_threads is not None and x.hardware.kind != "cpu",
    ),
)


def _below(context: Context, capability: tuple[int, int]) -> bool:
    return (has := context.hardware.compute_capability) is not None and has < capability
