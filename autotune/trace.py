"""The trace: what a training step allocates, seen by running the real trainer on tensors that have no data.

The trainer is the worker's own (sft.py), with its real PEFT adapters, checkpointing, loss and optimizer, under torch's
`FakeTensorMode`: no weights, no device. A recorder notes every storage that an operator makes and when it dies. A few
optimizer steps of different shapes, on a model of a few layers, give the profile of a model of any depth
(core/profile.py). Leaves out memory that kernels take inside an operator.

torch 2.13, transformers 5.23, trl 1.16: torch swaps a module's fake parameters in place and cannot, hence `_apply`;
transformers takes fake tensors for a graph being traced and then always builds a mask, hence `is_tracing`.
"""

import contextlib
import gc
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import transformers.masking_utils
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.initialization import no_init_weights

from autotune import sft
from autotune.assembly import WARMUP, Shapes, TraceError, assemble, with_growth
from autotune.attention_kernels import Capability
from autotune.contracts import cuda_paths
from autotune.core.candidate import Candidate
from autotune.core.profile import Profile, traced_layers
from autotune.core.recipe import Recipe
from autotune.recorder import Recorder
from autotune.task import Measure, Task

# Shapes (B, S, N) of the traced steps. Sizes are sums of at most two monomials; four shapes tell them apart. Lengths
# are multiples of 128, to which kernels of attention round them. A single row is a case of its own: what is contiguous
# there is copied with more. So are more label positions than TRL's head scores in one tile; two stand for any number.
SHAPES: dict[tuple[bool, bool], Shapes] = {  # (one row, more than one tile)
    (True, False): ((1, 128, 70), (1, 256, 95), (1, 384, 320), (1, 640, 410)),
    (False, False): ((2, 128, 150), (3, 256, 410), (4, 128, 190), (2, 384, 610)),
    (True, True): ((1, 4480, 4200), (1, 5120, 4900), (1, 6400, 5200), (1, 7680, 7000)),
    (False, True): ((2, 2304, 4300), (3, 1664, 4800), (2, 3200, 5000), (4, 1920, 7500)),
}
TAIL = 1  # step: accelerate collates a micro-batch ahead, and at the end there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What decides a profile.

    config: the model's, as transformers writes it. masked: whether rows are padded, so that attention needs a mask.
    tiled: whether a micro-batch has more label positions than one tile of TRL's head (TOKEN_CHUNK_SIZE).
    capability: of the CUDA device that is asked about, which decides between kernels; None for a CPU.
    loss: TRL's fused head, or a plain `model(labels=...)` step that keeps the logits, as other trainers do.
    """

    config: Mapping[str, Any]
    candidate: Candidate
    recipe: Recipe
    masked: bool
    tiled: bool = False
    capability: Capability | None = None
    loss: Literal["fused", "full_logits"] = "fused"


def trace(request: TraceRequest, *, depth: int | None = None) -> Profile:
    """Trace one optimizer step of a model of `depth` layers; None takes the fewest that stand for all of them.

    Raises TraceError when the step's structure depends on its shape, or when its layers do not repeat.
    """
    config = AutoConfig.for_model(**request.config)
    layers, period = config.num_hidden_layers, layer_period(config)
    depth = traced_layers(layers, period) if depth is None else depth
    shapes = traced_shapes(request)
    profile = assemble(_run(request, depth, shapes), shapes, depth, period)
    if depth == layers:
        return profile
    deeper = assemble(_run(request, depth + period, shapes[:1]), shapes[:1], depth + period, period)
    return with_growth(profile, deeper, shapes[0])


def traced_shapes(request: TraceRequest) -> Shapes:
    """The shapes (B, S, N) of the steps. On a CPU TRL's head scores every position but the last of each row."""
    shapes = SHAPES[request.candidate.per_device_train_batch_size == 1, request.tiled]
    return tuple((B, S, B * (S - 1) if request.capability is None else N) for B, S, N in shapes)


def layer_period(config: Any) -> int:
    """After how many decoder layers their kinds repeat."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    if not kinds:
        return 1
    return next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))


class _Trainer(sft.Trainer):
    """The trainer, telling the recorder where in the step it is, over given micro-batches."""

    def __init__(
        self, recorder: Recorder, micro_batches: Sequence[Sequence[int]], task: Task, **arguments: Any
    ) -> None:
        self.recorder = recorder
        self.micro_batches = micro_batches
        super().__init__(task, **arguments)
        count, collate = itertools.count(), self.data_collator

        def collate_and_count(rows: list[dict[str, Any]]) -> dict[str, Any]:
            recorder.collated = next(count) // self.args.gradient_accumulation_steps
            batch: dict[str, Any] = collate(rows)
            return batch

        self.data_collator = collate_and_count

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return sft.DrawnSteps(self.micro_batches)

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        self.recorder.step += 1
        self.recorder.micro, self.recorder.phase = 0, "batch"
        return super().get_batch_samples(*arguments, **keywords)

    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        self.recorder.micro += 1
        self.recorder.phase, self.recorder.layer, self.recorder.spans = "forward", None, []
        result = super().training_step(*arguments, **keywords)
        self.recorder.phase = "end"
        return result

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().compute_loss(*arguments, **keywords)
        self.recorder.phase = "backward"
        return result

    def _clip_grad_norm(self, model: Any) -> Any:
        self.recorder.phase = "clip"
        return super()._clip_grad_norm(model)


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
                    self.recorder.made[place].owner = "optimizer states"
                    self.recorder.made[place].layer = self.recorder.layer_of_parameter.get(id(parameter))


def _run(request: TraceRequest, depth: int, shapes: Shapes) -> Recorder:
    """Train one step of each shape, with the first shape before and the last one after them."""
    steps = [shapes[0]] * WARMUP + list(shapes) + [shapes[-1]] * TAIL
    on_cpu = request.capability is None
    recorder = Recorder(masked=request.masked, labels=None if on_cpu else [labels for _, _, labels in steps])
    accumulation = min(2, request.candidate.gradient_accumulation_steps)
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            candidate=replace(request.candidate, gradient_accumulation_steps=accumulation, batching="random"),
            recipe=request.recipe,
            model_path="",
            tokenized_path="",
            seed=0,
            device="cpu",
            output_dir=scratch,
            log_path="",
            work=Measure(budget_s=0.0, most_steps=len(steps)),
        )
        arguments = sft.sft_config(task)
        arguments.max_length, arguments.model_init_kwargs, arguments.max_steps = None, None, len(steps)
        rows = [[1] * length for _, length, _ in steps]
        micro_batches = [[place] * rows for place, (rows, _, _) in enumerate(steps) for _ in range(accumulation)]
        paths = contextlib.nullcontext() if request.capability is None else cuda_paths(request.capability)
        with FakeTensorMode(allow_non_fake_inputs=True), recorder, _patched(), paths:
            trainer = _Trainer(
                recorder,
                micro_batches,
                task,
                model=_model(request, depth),
                args=arguments,
                train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
                processing_class=_tokenizer(),
                peft_config=sft.lora_config(request.recipe) if request.candidate.method != "full" else None,
                callbacks=[_Phases(recorder)],
            )
            trainer.remove_callback(PrinterCallback)
            _mark_layers(trainer.model, depth, recorder)
            _name_weights(trainer.model, recorder)
            with _no_garbage_collection():
                trainer.train()
    return recorder


def _model(request: TraceRequest, depth: int) -> Any:
    config = AutoConfig.for_model(**request.config)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    dtype = getattr(torch, request.candidate.weights_dtype)
    with no_init_weights():  # ties no weights either
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=request.candidate.attention)
    model.tie_weights()
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one; the traced rows are tokens already."""
    words = Tokenizer(WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def _mark_layers(model: Any, depth: int, recorder: Recorder) -> None:
    """Tell the recorder when each decoder layer's forward begins and ends, and when the last is over."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth)
    layers = next(lists, None)
    if layers is None:
        raise TraceError(f"{type(model).__name__} has no list of {depth} decoder layers")
    for number, layer in enumerate(layers):
        _mark(layer, number, recorder)

    def end(*_: Any) -> None:
        if recorder.phase == "forward":
            recorder.phase, recorder.layer = "loss", None

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.base_model.register_forward_hook(end)


def _mark(layer: Any, number: int, recorder: Recorder) -> None:
    """Note which autograd nodes a layer's forward makes; its backward is known by them."""
    first = 0

    def enter(*_: Any) -> None:
        nonlocal first
        if recorder.phase == "forward":  # in the backward it is computed again
            recorder.layer, first = number, _get_sequence_nr()

    def leave(*_: Any) -> None:
        if recorder.phase == "forward":
            recorder.spans.append((first, _get_sequence_nr(), number))

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
    for parameter in layer.parameters():
        recorder.layer_of_parameter[id(parameter)] = number


def _name_weights(model: Any, recorder: Recorder) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if (place := recorder.block_of(tensor)) is not None:
            made = recorder.made[place]
            made.layer = recorder.layer_of_parameter.get(id(tensor))
            made.owner = "weights"
    for name, parameter in model.named_parameters():
        if "lora_" in name and (place := recorder.block_of(parameter)) is not None:
            recorder.made[place].owner = "adapters"


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    """Let modules of fake parameters be moved, and transformers ask whether a mask is needed."""
    made: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}  # shared parameters stay shared

    def apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
        for child in module.children() if recurse else ():
            apply(child, function)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    new = function(parameter)
                if new is not parameter:
                    pair = parameter, torch.nn.Parameter(new, requires_grad=parameter.requires_grad)
                    module._parameters[name] = made.setdefault(id(parameter), pair)[1]
        module._buffers.update({name: function(value) for name, value in module._buffers.items() if value is not None})
        return module

    with (
        patch.object(torch.nn.Module, "_apply", apply),
        patch.object(transformers.masking_utils, "is_tracing", lambda tensor=None: False),
    ):
        yield


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What dies in a cycle would die at a moment of chance."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
