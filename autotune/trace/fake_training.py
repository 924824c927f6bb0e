"""Training on tensors without data: a few optimizer steps of the real trainer, recorded.

The trainer is the worker's own (train/sft.py), with its real PEFT adapters, checkpointing, loss and optimizer, under
torch's `FakeTensorMode`: no weights, no device. The recorder notes every storage that an operator makes and when it
is freed. Leaves out what follows from the record (assembly.py).

What is patched, and why (torch 2.13, transformers 5.23, trl 1.16):
- `Module._apply`: torch would swap fake parameters in place, which fails;
- `is_tracing`: transformers takes fake tensors for a graph that is being traced, and then always builds a mask;
- collating runs without fake tensors, because a packed micro-batch is collated by its values.
"""

import contextlib
import gc
import itertools
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import bitsandbytes.functional
import torch
import transformers.masking_utils
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from autotune.core.recipe import Recipe
from autotune.core.step.profile import PAGED
from autotune.core.step.regime import Shapes, keeps_documents_apart
from autotune.errors import NotPredicted, UsageError
from autotune.models.target_modules import ALL_LINEAR, problems_of_targets, refused_by_peft
from autotune.trace.assembly import WARMUP
from autotune.trace.contracts import cuda_paths
from autotune.trace.hub_kernels import use_hub_kernels
from autotune.trace.offloading import offloading_traced
from autotune.trace.plain_step import LogitsTrainer
from autotune.trace.quantized import statistics
from autotune.trace.recorder import Recorder
from autotune.trace.request import TraceRequest
from autotune.trace.shallow import decoder_layers, shallow_model
from autotune.train import sft
from autotune.train.task import Measure, Task

TAIL = 1  # steps after the last traced one: accelerate collates a micro-batch ahead, and the last step has none

Prepare = Callable[[Any], Any]


class _Traced(Exception):
    """Ends the training: everything has been traced."""


class _Trainer(sft.Trainer):
    """The worker's trainer over given micro-batches; it tells the recorder which phase of the step runs."""

    def __init__(
        self, recorder: Recorder, micro_batches: Sequence[Sequence[int]], task: Task, **arguments: Any
    ) -> None:
        self.recorder = recorder
        self.micro_batches = micro_batches
        super().__init__(task, **arguments)
        count, collate = itertools.count(), self.data_collator
        collate.collator.padding_free = keeps_documents_apart(task.candidate)

        def collate_and_count(rows: list[dict[str, Any]]) -> dict[str, Any]:
            recorder.collated = next(count) // self.args.gradient_accumulation_steps
            with _disable_current_modes():
                batch: dict[str, Any] = collate(rows)
            fakes = {id(value): torch.empty_like(value) for value in batch.values() if isinstance(value, torch.Tensor)}
            for fake in fakes.values():
                if (place := recorder.block_of(fake)) is not None:
                    recorder.made[place].owner = "batch"
            return {name: fakes.get(id(value), value) for name, value in batch.items()}

        self.data_collator = collate_and_count

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return sft.DrawnSteps(self.micro_batches)

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        self.recorder.step += 1
        self.recorder.micro, self.recorder.phase = 0, "batch"
        return super().get_batch_samples(*arguments, **keywords)

    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        if self.recorder.step == self.args.max_steps - TAIL:
            self.recorder.stop()
            raise _Traced
        self.recorder.micro += 1
        self.recorder.phase, self.recorder.layer, self.recorder.spans = "forward", None, []
        result = super().training_step(*arguments, **keywords)
        self.recorder.phase = "end"
        return result

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().compute_loss(*arguments, **keywords)
        self.recorder.phase, self.recorder.layer = "backward", None
        return result

    def _clip_grad_norm(self, model: Any) -> Any:
        self.recorder.phase = "clip"
        return super()._clip_grad_norm(model)


class _LogitsTrainer(_Trainer, LogitsTrainer):
    """The same trainer for a step that keeps the logits."""


class _Phases(TrainerCallback):  # type: ignore[misc]
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.recorder.phase = "optimizer"
        for parameter in model.parameters():
            if parameter.grad is not None and (place := self.recorder.block_of(parameter.grad)) is not None:
                self.recorder.made[place].owner = "gradients"

    def on_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.recorder.phase = "end"
        for parameter, state in optimizer.state.items():
            for value in state.values():
                place = self.recorder.block_of(value) if isinstance(value, torch.Tensor) else None
                if place is not None:
                    paged = getattr(value, "is_paged", False)
                    self.recorder.made[place].owner = PAGED if paged else "optimizer states"
                    self.recorder.made[place].layer = self.recorder.layer_of_parameter.get(id(parameter))


def record_steps(
    request: TraceRequest,
    depth: int,
    shapes: Shapes,
    prepare: Prepare | None,
    most_micro_steps: int = 2,
) -> Recorder:
    """Train one step of each shape on a model of `depth` layers, and return the record.

    WARMUP steps of the first shape come before, and TAIL steps of the last shape after. prepare: changes the model
    before it trains, as another script would. most_micro_steps: of a step; by default two, because all further ones
    equal the second. Raises UsageError or NotPredicted for target modules that cannot be traced.
    """
    candidate = request.candidate
    apart = keeps_documents_apart(candidate)
    on_cpu = request.capability is None
    steps = [shapes[0]] * WARMUP + list(shapes) + [shapes[-1]] * TAIL
    labels = None if on_cpu else [count for _, _, count in steps]
    recorder = Recorder(masked=request.masked or apart, labels=labels, steady=WARMUP)
    accumulation = min(most_micro_steps, candidate.gradient_accumulation_steps)
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            candidate=replace(
                candidate, gradient_accumulation_steps=accumulation, dataloader_num_workers=0, torch_compile=False
            ),
            recipe=request.recipe,
            model_path="",
            tokenized_path="",
            seed=0,
            device="cpu",
            output_dir=scratch,
            log_path="",
            goal=Measure(budget_s=0.0, most_steps=len(steps)),
        )
        arguments = sft.sft_config(task)
        arguments.max_length, arguments.model_init_kwargs, arguments.max_steps = None, None, len(steps)
        arguments.packing, arguments.pad_to_multiple_of = False, None
        arguments.train_sampling_strategy, arguments.activation_offloading = "random", False
        rows = {"input_ids": [[1] * length for _, length, _ in steps]}
        rows["labels"] = rows["input_ids"]
        if apart:  # two documents in a row
            rows["seq_lengths"] = [[length // 2, length - length // 2] for _, length, _ in steps]
        micro_batches = [[place] * count for place, (count, _, _) in enumerate(steps) for _ in range(accumulation)]
        paths = (
            contextlib.nullcontext()
            if request.capability is None
            else cuda_paths(request.capability, ran=recorder.note_kernel)
        )
        with FakeTensorMode(allow_non_fake_inputs=True), recorder, _patched(), paths:
            model = shallow_model(request.config, depth, candidate)
            if candidate.use_kernels and not on_cpu:
                use_hub_kernels(model)
            if prepare is not None:
                model = prepare(model)
            adapted = candidate.method == "full" or isinstance(model, PeftModel)
            if not adapted:
                _check_target_modules(model, request.recipe)
            trainer = (_Trainer if request.loss == "fused" else _LogitsTrainer)(
                recorder,
                micro_batches,
                task,
                model=model,
                args=arguments,
                train_dataset=Dataset.from_dict(rows),
                processing_class=_tokenizer(),
                peft_config=None if adapted else sft.lora_config(request.recipe, refused_by_peft(model)),
                callbacks=[_Phases(recorder)],
            )
            trainer.remove_callback(PrinterCallback)
            _mark_layers(trainer.model, depth, recorder)
            _name_weights(trainer.model, recorder)
            away = offloading_traced(trainer, recorder) if candidate.activation_offloading else contextlib.nullcontext()
            with _no_garbage_collection(), away, contextlib.suppress(_Traced):
                trainer.train()
    return recorder


def _check_target_modules(model: Any, recipe: Recipe) -> None:
    """Raise UsageError for target modules that the model lacks. PEFT ignores them as long as one other name exists.

    Raises NotPredicted for adapters on single layers, which the shallow model may lack.
    """
    if recipe.lora_target_modules == ALL_LINEAR:
        return
    if single := [asked for asked in recipe.lora_target_modules if re.search(r"\.\d+(\.|$)", asked)]:
        raise NotPredicted(f"adapters on single layers ({', '.join(single)}) are not predicted")
    if problems := problems_of_targets(model, recipe.lora_target_modules):
        raise UsageError(*problems)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of two words. TRL requires one, though the traced rows are tokens already."""
    words = Tokenizer(WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def _mark_layers(model: Any, depth: int, recorder: Recorder) -> None:
    """Tell the recorder when the forward of each decoder layer begins and ends, and when the loss begins."""
    for number, layer in enumerate(decoder_layers(model, depth)):
        _mark(layer, number, recorder, last=number == depth - 1)

    def end(*_: Any) -> None:
        if recorder.phase == "forward":
            recorder.phase, recorder.layer = "loss", None

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.base_model.register_forward_hook(end)


def _mark(layer: Any, number: int, recorder: Recorder, *, last: bool) -> None:
    """Note which autograd nodes a layer's forward makes: they tell later which layer's backward runs.

    Operators between two layers belong to the earlier one. Operators after the last layer belong to none.
    """
    first = 0

    def enter(*_: Any) -> None:
        nonlocal first
        if recorder.phase == "forward":  # checkpointing calls it again in the backward
            recorder.layer, first = number, _get_sequence_nr()

    def leave(*_: Any) -> None:
        if recorder.phase == "forward":
            recorder.spans.append((first, _get_sequence_nr(), number))
            recorder.layer = None if last else number

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
    for tensor in (*layer.parameters(), *layer.buffers()):
        recorder.layer_of_parameter[id(tensor)] = number


def _name_weights(model: Any, recorder: Recorder) -> None:
    tensors = [(tensor, tensor) for tensor in (*model.parameters(), *model.buffers())]
    tensors += [(tensor, module.weight) for module in model.modules() for tensor in statistics(module)]
    for tensor, parameter in tensors:
        if (place := recorder.block_of(tensor)) is not None:
            made = recorder.made[place]
            made.layer = recorder.layer_of_parameter.get(id(parameter))
            made.owner = "weights"
    for name, parameter in model.named_parameters():
        if "lora_" in name and (place := recorder.block_of(parameter)) is not None:
            recorder.made[place].owner = "adapters"


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    """Let modules with fake parameters be moved, and let transformers decide whether a mask is needed."""
    made: Any = WeakIdKeyDictionary()  # shared parameters stay shared; weak, so that unused ones are freed

    def apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
        for child in module.children() if recurse else ():
            apply(child, function)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    new = function(parameter)
                if new is not parameter:
                    shared = made[parameter]() if parameter in made else None
                    if shared is None:
                        shared = torch.nn.Parameter(new, requires_grad=parameter.requires_grad)
                        made[parameter] = weakref.ref(shared)
                    module._parameters[name] = shared
        module._buffers.update({name: function(value) for name, value in module._buffers.items() if value is not None})
        return module

    with (
        patch.object(torch.nn.Module, "_apply", apply),
        patch.object(transformers.masking_utils, "is_tracing", lambda tensor=None: False),
        patch.dict(bitsandbytes.functional.name2qmap),  # a cache that would keep fake tensors
    ):
        yield


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off: it would free storages in reference cycles at random moments."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
