"""Rules: a hand-checked table of what each one removes and leaves, and laws of the list itself."""

from dataclasses import replace
from typing import Any

import pytest

from autotune.core.knobs import KNOBS
from autotune.core.space.context import Context
from autotune.core.space.legality import RULES, first_broken
from tests.core.examples import A100, CPU, PLAIN, RICH, T4, candidate, context, workload
from tests.core.test_candidate import OTHER_VALUES

NO_SDPA = workload(model={"attention": ("eager",)})
FIXED = workload(model={"supports_checkpointing": False})
OPT = workload(model={"model_type": "opt"})
GPT_NEO = workload(model={"model_type": "gpt_neo"})
DBRX = workload(model={"model_type": "dbrx"})
# Of rows of 20 to 419 tokens the last five are labels; within 20 tokens five rows have one.
PROMPTS = workload(labels=5)
SHORT = workload(tokens=[50] * 6)  # fewer rows than the eight of a step
# Rows of 896 tokens hold four samples of 219.5 on average, so two rows make a step of eight.
STEP = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
PACKED = {"batching": "pack_bfd", "max_length": 896, "packed_length": 896, **STEP}

# rule, where, what breaks it, and the nearest that does not
TABLE: list[tuple[str, Context, dict[str, Any], dict[str, Any]]] = [
    ("one_device", context(A100), {"devices": 2}, {}),
    ("one_device", context(A100), {"sharding": "fsdp2"}, {}),
    ("padding_free_without_max_length", context(A100, RICH), {"batching": "padding_free"}, {}),
    ("documents_mixed", context(work=OPT), PACKED, PACKED | {"batching": "pack_wrapped"}),
    ("packed_length_without_packing", context(), {"packed_length": 896}, {}),
    ("packed_length_without_packing", context(), PACKED | {"packed_length": None}, PACKED),
    ("packing_cuts_at_the_row", context(), PACKED | {"max_length": 448}, PACKED),
    ("within_model_limit", context(), {"max_length": 1088}, {"max_length": 1024}),
    ("packed_within_the_mask", context(work=GPT_NEO), PACKED, PACKED | {"per_device_train_batch_size": 1}),
    (
        "splits_nothing",
        context(),
        PACKED | {"batching": "pack_bfd_split"},
        PACKED | {"batching": "pack_bfd_split", "max_length": 384, "packed_length": 384},
    ),
    ("samples_per_step", context(), {"gradient_accumulation_steps": 3}, {}),
    ("samples_per_step", context(), PACKED | {"gradient_accumulation_steps": 2}, PACKED),
    ("one_full_step", context(work=SHORT), {}, {"gradient_accumulation_steps": 1}),
    ("one_full_step", context(work=PROMPTS), {"max_length": 20}, {"max_length": 40}),
    (
        "balances_nothing",
        context(),
        {"batching": "batch_rebalance", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"batching": "batch_rebalance"},
    ),
    (
        "balances_nothing",
        context(),
        {"batching": "batch_rebalance", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"batching": "batch_rebalance"},
    ),
    (
        "groups_nothing",
        context(),
        {"batching": "group_by_length", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"batching": "group_by_length"},
    ),
    ("int8_needs_turing", context(replace(T4, compute_capability=(7, 0))), {"method": "lora_int8"}, {}),
    ("fp16_weights_on_a_cpu", context(), {"method": "lora", "weights_dtype": "float16"}, {"method": "lora"}),
    ("fp16_autocast_on_a_cpu", context(), {"mixed_precision": "fp16"}, {"mixed_precision": "no"}),
    ("autocast_of_the_model", context(work=DBRX), {}, {"mixed_precision": "no"}),
    (
        "fp16_weights_trained",
        context(T4),
        {"weights_dtype": "float16", "mixed_precision": "fp16"},
        {"method": "lora", "weights_dtype": "float16", "mixed_precision": "fp16"},
    ),
    ("fp16_needs_a_scaler", context(T4), {"method": "lora", "weights_dtype": "float16"}, {"mixed_precision": "fp16"}),
    ("two_half_types", context(T4), {"weights_dtype": "bfloat16", "mixed_precision": "fp16"}, {}),
    ("quantized_under_fp16", context(T4), {"method": "qlora", "mixed_precision": "fp16"}, {"method": "qlora"}),
    ("tf32_needs_ampere", context(T4), {"tf32": True, "mixed_precision": "no"}, {"mixed_precision": "no"}),
    (
        "compiling_turns_tf32_on",
        context(A100),
        {"torch_compile": True, "mixed_precision": "no"},
        {"torch_compile": True, "mixed_precision": "no", "tf32": True},
    ),
    ("tf32_changes_nothing", context(A100), {"tf32": True}, {"tf32": True, "mixed_precision": "no"}),
    ("model_cannot_checkpoint", context(work=FIXED), {"checkpointing": "full"}, {}),
    ("every_n_misplaced", context(), {"every_n_layers": 2}, {"every_n_layers": 2, "checkpointing": "every_n"}),
    (
        "every_n_misplaced",
        context(),
        {"every_n_layers": 4, "checkpointing": "every_n"},
        {"every_n_layers": 3, "checkpointing": "every_n"},
    ),
    ("offloading_needs_a_gpu", context(), {"activation_offloading": True}, {}),
    ("attention_of_the_model", context(work=NO_SDPA), {}, {"attention": "eager"}),
    ("flash_attention_missing", context(T4, RICH), {"attention": "flash_attention_2"}, {}),
    ("flash_attention_missing", context(A100, PLAIN), {"attention": "flash_attention_3"}, {}),
    ("flex_needs_a_gpu", context(), {"attention": "flex_attention"}, {}),
    (
        "flash_needs_half_precision",
        context(A100, RICH),
        {"attention": "flash_attention_2", "mixed_precision": "no"},
        {"attention": "flash_attention_2"},
    ),
    (
        "selective_saves_nothing",
        context(),
        {"attention": "eager", "checkpointing": "selective"},
        {"checkpointing": "selective"},
    ),
    ("paging_needs_a_gpu", context(), {"optimizer": "paged_adamw_8bit"}, {"optimizer": "adamw_8bit"}),
    ("compile_needs_a_compiler", context(installed=replace(PLAIN, cpp_compiler=False)), {"torch_compile": True}, {}),
    ("kernels_missing", context(A100, PLAIN), {"use_kernels": True}, {}),
    ("more_workers_than_cores", context(), {"dataloader_num_workers": 3}, {"dataloader_num_workers": 2}),
    ("more_threads_than_cores", context(), {"torch_threads": 3}, {"torch_threads": 2}),
    ("threads_on_a_gpu", context(A100), {"torch_threads": 1}, {}),
]


@pytest.mark.parametrize(("name", "where", "breaks", "keeps"), TABLE, ids=[row[0] for row in TABLE])
def test_what_a_rule_removes_and_leaves(
    name: str, where: Context, breaks: dict[str, Any], keeps: dict[str, Any]
) -> None:
    """Each rule is the first that its example breaks, and the neighbour of the example keeps that rule."""
    broken = first_broken(candidate(**breaks), where)
    assert broken is not None
    assert broken.name == name
    assert not broken.broken(candidate(**keeps), where)


def test_the_table_names_every_rule() -> None:
    """A new rule comes with its example."""
    assert [rule.name for rule in RULES] == list(dict.fromkeys(row[0] for row in TABLE))


def test_legal_on_every_kind_of_machine() -> None:
    """What a person would call ordinary is legal."""
    assert first_broken(candidate(), context()) is None
    assert first_broken(candidate(**PACKED), context()) is None
    on_t4 = candidate(method="lora", weights_dtype="float16", mixed_precision="fp16")
    assert first_broken(on_t4, context(T4)) is None
    fast = candidate(attention="flash_attention_2", checkpointing="selective", use_kernels=True, torch_compile=True)
    assert first_broken(fast, context(A100, RICH)) is None


def test_flash_attention_comes_from_the_hub_when_the_package_is_missing() -> None:
    """transformers 5 falls back on the hub's kernel where the package `kernels` is installed."""
    hub = context(A100, replace(PLAIN, kernels=True))
    assert first_broken(candidate(attention="flash_attention_2"), hub) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("where", [context(CPU), context(T4), context(A100, RICH)], ids=["cpu", "t4", "a100"])
def test_a_rule_reads_only_its_knobs(rule: Any, where: Context) -> None:
    """The space cuts as soon as a rule's knobs are fixed, so no other knob may change its answer."""
    examples = [candidate(**row[2]) for row in TABLE if row[0] == rule.name]
    for one in [candidate(), *examples]:
        answer = rule.broken(one, where)
        for knob in set(KNOBS) - set(rule.knobs):
            assert rule.broken(replace(one, **{knob: OTHER_VALUES[knob]}), where) == answer, knob
