"""Target modules of adapters: whether the model has the modules that `recipe.lora_target_modules` names.

PEFT ignores a name that no module has, as long as another name has one. Then less is trained than was asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any

from autotune.core.workload import ModelFacts
from autotune.errors import UsageError

ALL_LINEAR = ("all-linear",)


def check_target_modules(
    facts: ModelFacts, targets: Sequence[str], *, progress: Callable[[str], None] = lambda line: None
) -> None:
    """Raise UsageError with every target module that the model lacks, or that PEFT cannot adapt.

    facts: `path` is the model's directory. targets: of the recipe. progress: is told what PEFT's own choice leaves out.
    """
    if tuple(targets) == ALL_LINEAR:
        if facts.not_adapted:
            progress(f"LoRA adapts all linear modules but {', '.join(facts.not_adapted)}, which PEFT refuses here")
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
    problems, refused = [], refused_by_peft(model)
    for target in targets:
        found = [module for name, module in modules.items() if f".{name}".endswith(f".{target}")]
        if not found:
            problems.append(f"recipe.lora_target_modules: got {target}, {expected}")
        elif not any(isinstance(module, kinds) for module in found):
            kind = type(found[0]).__name__
            problems.append(f"recipe.lora_target_modules: got {target}, a {kind}, which LoRA cannot adapt; {expected}")
        elif target.rpartition(".")[2] in refused:
            problems.append(f"recipe.lora_target_modules: got {target}, which PEFT refuses in this type of model")
    return problems


def refused_by_peft(model: Any) -> tuple[str, ...]:
    """List the last names of the linear modules of a model that PEFT's LoRA refuses, such as `out_proj` of Mamba.

    PEFT names them as targets when it is asked for all linear modules, and then refuses its own choice (PEFT 0.21).
    Only models that carry a state are asked about, because importing PEFT takes seconds.
    """
    if not model._is_stateful:
        return ()
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    config, found = LoraConfig(), set()
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name not in found and isinstance(module, Linear | Conv1D):
            try:
                LoraModel._check_target_module_compatiblity(None, config, model, name)
            except ValueError:
                found.add(name)
    return tuple(sorted(found))
