"""Target modules of adapters: whether the model has the modules that `recipe.lora_target_modules` names.

PEFT ignores a name that no module has, as long as another name has one. Then less is trained than was asked for.
"""

from collections.abc import Sequence
from typing import Any

from autotune.core.workload import ModelFacts
from autotune.errors import UsageError

ALL_LINEAR = ("all-linear",)


def check_target_modules(facts: ModelFacts, targets: Sequence[str]) -> None:
    """Raise UsageError with every target module that the model lacks, or that PEFT cannot adapt.

    facts: `path` is the model's directory. targets: of the recipe.
    """
    if tuple(targets) == ALL_LINEAR:
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(facts.path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if problems := problems_of_targets(model, targets):
        raise UsageError(*problems)


def problems_of_targets(model: Any, targets: Sequence[str]) -> list[str]:
    """List the targets that are no modules of a model, or none that PEFT's LoRA can adapt. model: its weights are not
    read."""
    from torch.nn import Conv1d, Conv2d, Conv3d, Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    kinds = (Linear, Embedding, Conv1d, Conv2d, Conv3d, Conv1D)
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in modules.items()
        if isinstance(module, Linear | Conv1D) and module is not head
    }
    expected = f"expected modules of the model, such as {', '.join(sorted(linear))}"
    problems = []
    for target in targets:
        found = [module for name, module in modules.items() if f".{name}".endswith(f".{target}")]
        if not found:
            problems.append(f"recipe.lora_target_modules: got {target}, {expected}")
        elif not any(isinstance(module, kinds) for module in found):
            kind = type(found[0]).__name__
            problems.append(f"recipe.lora_target_modules: got {target}, a {kind}, which LoRA cannot adapt; {expected}")
    return problems
