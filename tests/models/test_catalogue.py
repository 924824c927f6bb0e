"""The catalogue: every entry is what it says it is, and is found by its hub id."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.core.gpu_spec import UNKNOWN_CONTEXT_BYTES, read_gpu_spec
from autotune.core.units import GIB, MIB
from autotune.errors import UsageError
from autotune.models.catalogue import CONF, catalogued_config

PARAMETERS = {  # as the hub counts each checkpoint's, tied heads once
    "facebook/opt-350m": 331196416,
    "google/gemma-2-27b": 27227128320,
    "google/gemma-2-2b": 2614341888,
    "google/gemma-2-9b": 9241705984,
    "google/gemma-3-1b-pt": 999885952,
    "openai-community/gpt2": 124439808,
    "openai-community/gpt2-large": 774030080,
    "openai-community/gpt2-medium": 354823168,
    "openai-community/gpt2-xl": 1557611200,
    "meta-llama/Llama-2-13b-hf": 13015864320,
    "meta-llama/Llama-2-7b-hf": 6738415616,
    "meta-llama/Llama-3.1-70B": 70553706496,
    "meta-llama/Llama-3.1-8B": 8030261248,
    "meta-llama/Llama-3.2-1B": 1235814400,
    "meta-llama/Llama-3.2-3B": 3212749824,
    "meta-llama/Meta-Llama-3-8B": 8030261248,
    "mistralai/Mistral-7B-Instruct-v0.3": 7248023552,
    "mistralai/Mistral-7B-v0.1": 7241732096,
    "mistralai/Mistral-Nemo-Base-2407": 12247782400,
    "mistralai/Mixtral-8x7B-v0.1": 46702792704,
    "allenai/OLMoE-1B-7B-0924": 6919161856,
    "microsoft/Phi-3-medium-4k-instruct": 13960238080,
    "microsoft/Phi-3-mini-4k-instruct": 3821079552,
    "microsoft/phi-4": 14659507200,
    "ibm/PowerLM-3b": 3510819072,
    "Qwen/Qwen2.5-0.5B": 494032768,
    "Qwen/Qwen2.5-0.5B-Instruct": 494032768,
    "Qwen/Qwen2.5-14B": 14770033664,
    "Qwen/Qwen2.5-1.5B": 1543714304,
    "Qwen/Qwen2.5-1.5B-Instruct": 1543714304,
    "Qwen/Qwen2.5-32B": 32763876352,
    "Qwen/Qwen2.5-3B": 3085938688,
    "Qwen/Qwen2.5-72B": 72706203648,
    "Qwen/Qwen2.5-7B": 7615616512,
    "Qwen/Qwen2.5-7B-Instruct": 7615616512,
    "Qwen/Qwen3-0.6B": 596049920,
    "Qwen/Qwen3-14B": 14768307200,
    "Qwen/Qwen3-1.7B": 1720574976,
    "Qwen/Qwen3-30B-A3B": 30532122624,
    "Qwen/Qwen3-32B": 32762123264,
    "Qwen/Qwen3-4B": 4022468096,
    "Qwen/Qwen3-8B": 8190735360,
    "HuggingFaceTB/SmolLM2-135M": 134515008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134515008,
    "HuggingFaceTB/SmolLM2-1.7B": 1711376384,
    "HuggingFaceTB/SmolLM2-360M": 361821120,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1100048384,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1100048384,
}
MODELS = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "model").glob("*.yaml")}
GPUS = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "hardware").glob("*.yaml")}
CATALOGUED = {entry["path"]: entry["config"] for entry in MODELS.values() if "config" in entry}


def test_every_model_is_counted() -> None:
    """No entry is without its count below."""
    assert CATALOGUED.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("hub_id", PARAMETERS)
def test_an_architecture_has_its_parameters(hub_id: str) -> None:
    """The class that transformers makes of the configuration has as many as the published weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CATALOGUED[hub_id]))
    assert model.num_parameters() == PARAMETERS[hub_id]


def test_a_hub_id_finds_its_entry() -> None:
    """The whole id, not a part of it."""
    found = catalogued_config("Qwen/Qwen2.5-0.5B")
    assert found is not None
    assert found["hidden_size"] == 896
    assert catalogued_config("Qwen/Qwen2.5") is None


@pytest.mark.parametrize("name", [name for name, entry in GPUS.items() if "gpu" in entry])
def test_a_gpu_is_complete(name: str) -> None:
    """Every entry reads, names sources, and makes a machine to plan for, whose host is unknown."""
    spec = read_gpu_spec(GPUS[name]["gpu"])
    hardware = spec.hardware(cores=4)
    assert spec.sources
    assert hardware.memory_bytes == int(spec.memory_gib * GIB)
    assert hardware.context_bytes in (UNKNOWN_CONTEXT_BYTES, (spec.context_mib or 0) * MIB)
    assert (hardware.host_memory_bytes, hardware.host_free_bytes) == (None, None)
    assert hardware.supports_bf16 == (spec.capability >= (8, 0))


@pytest.mark.parametrize(
    ("capability", "each"),
    [
        *((older, 8 * MIB + 128 * 1024) for older in ("7.5", "8.0", "8.6", "8.9", "11.0")),
        *((newer, 32 * MIB) for newer in ("9.0", "10.0", "10.3", "12.0", "12.1")),
    ],
)
def test_workspaces_by_capability(capability: str, each: int) -> None:
    """The table of `parseChosenWorkspaceSize`: cuBLAS gets two, larger ones on Hopper and Blackwell."""
    spec = read_gpu_spec({**GPUS["t4"]["gpu"], "compute_capability": capability})
    assert spec.workspace_bytes == 2 * each


def test_a_wrong_gpu_lists_its_mistakes() -> None:
    """All at once, each with its place."""
    with pytest.raises(UsageError) as refused:
        read_gpu_spec({**GPUS["t4"]["gpu"], "sm_count": "many", "memory_gb": 16})
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "hardware.gpu.memory_gb",
        "hardware.gpu.sm_count",
    ]
