"""The step of trainers that keep the logits: `model(labels=...)` in place of TRL's fused head.

TRL 1.16 always scores labels tile by tile. Other trainers on transformers, and older TRL, let the model make all of
its logits and take the loss from them. Everything else of the step is the trainer's own (sft.py).
"""

from typing import Any

from autotune import sft


class LogitsTrainer(sft.Trainer):
    """The trainer with the model's own loss. Without `fused_lm_head=True` TRL's patched forward is the original."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss
