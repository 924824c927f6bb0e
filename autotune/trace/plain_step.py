"""The step of trainers that keep the logits: `model(labels=...)` in place of TRL's fused head.

TRL 1.16 always scores labels tile by tile. Other trainers and older TRL let the model compute all logits and take the
loss from them. The rest of the step is the trainer's own (train/sft.py).
"""

from typing import Any

from autotune.train import sft


class LogitsTrainer(sft.Trainer):
    """The trainer with the model's own loss. Without `fused_lm_head=True` TRL's patched forward is the original.

    keeps_outputs: whether the logits live until the backward pass ends, as in `out = model(...); out.loss.backward()`.
    A trainer that returns only the loss frees them earlier.
    """

    keeps_outputs = True
    outputs: Any = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch)
        if self.keeps_outputs:
            self.outputs = outputs
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        loss = super().training_step(*arguments, **keywords)
        self.outputs = None
        return loss
