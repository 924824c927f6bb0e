"""Profiles, kept: traced once for an architecture, a way of training and a stack, then read from the cache.

What is asked is first reduced to what a trace depends on, and exactly that is traced, so that two requests with one
key have one profile. Neither torch nor transformers is imported for a profile that is there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from autotune import cache
from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.gpu_specs import CUDNN_WIDTHS, LITTLE_SHARED_MEMORY
from autotune.core.knobs import DEFAULTS, KNOBS, knobs_that_change
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile, profile_from_dict
from autotune.core.step.regime import keeps_documents_apart, regime_of
from autotune.errors import NotPredicted, first_line
from autotune.machine.installed import installed
from autotune.trace.tracer import trace_apart, trace_many

Loss = Literal["fused", "full_logits"]

FORMAT = 14  # of the files, and of what the trace writes into them; counts up when either changes
MEMORY = 9  # the format since which blocks, and when they live, are as they are: benchmarks' rows hold from it on
STACK = ("autotune-sft", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
LENGTH = 1024  # tokens: what stands in the place of lengths, which a trace does not depend on
TRACED_KNOBS = knobs_that_change("trace")  # besides the number of rows and of micro-steps
NAMED_FIRST = ("method", "checkpointing", "optimizer", "weights_dtype")  # in every description of a step
# GPUs of these kinds run the same kernels (attention_kernels.py): without flash attention, with it in little shared
# memory, with it. Each kind is traced as one of its capabilities, where cuDNN's goes first as (9, 0) or (10, 0).
NO_FLASH, LITTLE_SHARED, PLAIN = (7, 5), (8, 6), (8, 0)
ADAPTERS = ("lora_rank", "lora_target_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What decides a profile, as TraceRequest has it; it is made here without importing what traces."""

    config: Mapping[str, Any]
    candidate: Candidate
    recipe: Recipe
    masked: bool
    tiled: bool = False
    ragged: bool = False
    capability: tuple[int, int] | None = None
    beyond_window: bool = False
    loss: Loss = "fused"

    @property
    def asked(self) -> dict[str, Any]:
        """The fields by name, as tracer.trace_apart and TraceRequest take them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells a reduced request from others of the same model."""
        return tuple(value for name, value in self.asked.items() if name != "config")


def request_of(
    batch: Batch,
    candidate: Candidate,
    *,
    config: Mapping[str, Any],
    recipe: Recipe,
    window: int | None,
    masked: bool,
    loss: Loss,
    capability: tuple[int, int] | None,
) -> ProfileRequest:
    """The reduced request that a candidate's micro-batch comes under. batch.labels: those that the loss scores.

    window: positions that the model's sliding window reaches back, None without one. The others as in ProfileRequest.
    """
    regime = regime_of(batch.rows, batch.positions, window, labels=batch.labels)
    return reduced(
        ProfileRequest(
            config=config,
            candidate=replace(candidate, per_device_train_batch_size=batch.rows),
            recipe=recipe,
            masked=masked,
            tiled=regime.tiled,
            ragged=regime.ragged,
            beyond_window=regime.beyond_window,
            loss=loss,
            capability=capability,
        )
    )


def load_profile(request: ProfileRequest, *, home: Path, progress: Callable[[str], None]) -> Profile:
    """The profile of a request: the cached one, else a new trace, which takes seconds.

    A file that is damaged or not ours is made anew. Raises NotPredicted when a step cannot be traced.
    """
    request = reduced(request)

    def answer() -> dict[str, Any]:
        progress(f"tracing a training step ({', '.join(_kind_of_step(request))}); this is done once")
        try:
            return trace_apart(request.asked).to_dict()
        except NotPredicted as error:
            raise _not_traced(request, error) from error

    question = describe_request(request)
    path = _path_of(question, home)
    try:
        return profile_from_dict(cache.remember(path, question, answer, progress))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        progress(f"{path} holds no profile ({type(error).__name__}: {error}); it is made anew")
        path.unlink()
        return profile_from_dict(cache.remember(path, question, answer, progress))


def trace_missing(
    requests: Iterable[ProfileRequest],
    *,
    home: Path,
    progress: Callable[[str], None],
    until: float,
    processes: int,
) -> dict[tuple[Any, ...], str]:
    """Trace the profiles that the cache lacks, several at once, and keep them there.

    until, processes: as tracer.trace_many has them. Returns the reason for each one that was not traced, by its
    identity.
    """
    missing = [each for each in requests if not is_kept(each, home)]
    if not missing:
        return {}
    progress(f"tracing {len(missing)} kinds of training steps; this is done once")
    failed: dict[tuple[Any, ...], str] = {}
    with closing(trace_many([request.asked for request in missing], until=until, processes=processes)) as traces:
        for request, found in zip(missing, traces, strict=True):
            if found is None:
                failed[request.identity] = "no time was left to trace all kinds of steps"
            elif isinstance(found, NotPredicted):
                failed[request.identity] = str(_not_traced(request, found))
            else:
                question = describe_request(request)
                cache.remember(_path_of(question, home), question, found.to_dict, progress)
    return failed


def is_kept(request: ProfileRequest, home: Path) -> bool:
    """Whether the profile of a reduced request is there without a trace."""
    return _path_of(describe_request(request), home).exists()


def reduced(request: ProfileRequest) -> ProfileRequest:
    """The same request, with all that a trace does not depend on at one value.

    Kept of the batch are one row or several and packed or not, of accumulation one micro-step or several.
    """
    asked, recipe = request.candidate, request.recipe
    candidate = Candidate(
        max_length=LENGTH,
        packed_length=LENGTH if asked.packs else None,
        batching=asked.batching if asked.packs else "random",
        per_device_train_batch_size=min(asked.per_device_train_batch_size, 2),
        gradient_accumulation_steps=min(asked.gradient_accumulation_steps, 2),
        **{knob: getattr(asked, knob) for knob in TRACED_KNOBS},
    )
    kept = {name: getattr(recipe, name) for name in ADAPTERS} if asked.method != "full" else {}
    return replace(
        request,
        candidate=candidate,
        recipe=Recipe(
            method=asked.method,
            max_grad_norm=1.0 if recipe.max_grad_norm else 0.0,
            neftune_noise_alpha=1.0 if recipe.neftune_noise_alpha else None,
            lora_dropout=0.1 if kept and recipe.lora_dropout else 0.0,
            **kept,
        ),
        tiled=request.tiled and request.loss == "fused",
        ragged=request.ragged and request.capability is not None and _has_mask(request) and asked.attention == "sdpa",
        capability=None if request.capability is None else _kind(request.capability),
    )


def _kind_of_step(request: ProfileRequest) -> Iterator[str]:
    """What a reduced request is about, in words: what is as usual goes without saying."""
    knobs = request.candidate
    yield f"{knobs.method}, checkpointing {knobs.checkpointing}, {knobs.optimizer}, {knobs.weights_dtype} weights"
    yield "packed" if knobs.packs else "one row" if knobs.per_device_train_batch_size == 1 else "several rows"
    if knobs.gradient_accumulation_steps > 1:
        yield "accumulating"
    if request.masked:
        yield "of unequal length"
    if request.beyond_window:
        yield "beyond the sliding window"
    if request.loss == "full_logits":
        yield "full logits"
    if request.tiled:
        yield "more labels than a tile of the head"
    if request.ragged:
        yield "masks that are padded"
    for knob in TRACED_KNOBS:
        value = getattr(knobs, knob)
        if knob not in NAMED_FIRST and value != DEFAULTS[knob]:
            yield KNOBS[knob].short.format(value) or f"{knob.replace('_', ' ')} {value}"


def _not_traced(request: ProfileRequest, error: NotPredicted) -> NotPredicted:
    return NotPredicted(f"a step ({', '.join(_kind_of_step(request))}) cannot be traced: {first_line(error)}")


def _has_mask(request: ProfileRequest) -> bool:
    return request.masked or request.beyond_window or keeps_documents_apart(request.candidate)


def _kind(capability: tuple[int, int]) -> tuple[int, int]:
    if capability < PLAIN:
        return NO_FLASH
    if capability[0] in CUDNN_WIDTHS:
        return capability[0], 0
    return LITTLE_SHARED if capability in LITTLE_SHARED_MEMORY else PLAIN


def describe_request(request: ProfileRequest) -> dict[str, Any]:
    """A reduced request and the stack that answers it, as plain values: two equal ones have one profile."""
    versions = installed().versions
    return {**asdict(request), "format": FORMAT, "versions": {name: versions.get(name) for name in STACK}}


def _path_of(question: Any, home: Path) -> Path:
    return home / "profiles" / f"{key_of(question)}.json"


def key_of(question: Any) -> str:
    """A name for the file that answers a question."""
    return blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()
