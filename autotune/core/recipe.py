"""The recipe: the training that was asked for. A search keeps it, whatever else it changes.

`None` means "not fixed": the method and the learning rate then follow the properties below.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["full", "lora", "qlora", "lora_int8"]
METHODS: tuple[Method, ...] = get_args(Method)

FULL_LEARNING_RATE = 2e-5  # TRL's default for SFT (trl.SFTConfig.learning_rate)
ADAPTER_LEARNING_RATE = 2e-4  # QLoRA, arXiv:2305.14314, table 9; ten times the full rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The training that was asked for, in the words of `recipe.*`.

    effective_batch_size: samples per optimizer step over all devices, >= 1.
    coverage: least share of the dataset's tokens that must remain after truncation, in (0, 1]; 1 asks for all tokens
        that the model can take.
    max_steps: optimizer steps after which training ends; None trains `epochs`.
    lora_target_modules: module names, or ("all-linear",) for PEFT's own choice.
    """

    method: Method | None = None
    effective_batch_size: int = 16
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float | None = None
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    coverage: float = 1.0
    assistant_only_loss: bool = False
    completion_only_loss: bool | None = None
    neftune_noise_alpha: float | None = None
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ("all-linear",)

    @property
    def asked_method(self) -> Method:
        """The method of the baseline: full fine-tuning unless another was asked for."""
        return self.method or "full"

    def learning_rate_for(self, method: Method) -> float:
        """The peak learning rate: as asked, else the usual one for `method`."""
        if self.learning_rate is not None:
            return self.learning_rate
        return FULL_LEARNING_RATE if method == "full" else ADAPTER_LEARNING_RATE
