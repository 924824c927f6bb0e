"""Points: training runs that other people measured on their GPUs and published, read and traced for a prediction.

A row says what was run: model, GPU, method, shape, precision, optimizer, and the versions where they are known. Rows
that leave out what a trace needs are skipped with the reason. Architectures come from the file of models, else from the
catalogue (conf/).

Some scripts do what this project does not: they keep whole logits, leave the scales of nf4 unquantized, or call
`prepare_model_for_kbit_training`. The trace imitates what a row's script did.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers.integrations.sdpa_attention
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig
from transformers.utils import logging

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.gpu_spec import GpuSpec
from autotune.core.knobs import VALUES, Optimizer
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile
from autotune.errors import UsageError, first_line
from autotune.models.architectures import sliding_window
from autotune.models.catalogue import catalogued_config
from autotune.trace.plain_step import LogitsTrainer
from autotune.trace.profiles import describe_request, key_of
from autotune.trace.request import TraceRequest, request_of
from autotune.trace.trace import trace
from autotune.train import sft
from benchmarks.machines import catalogued_gpus

ABOUT_THE_MODEL = ("n_params_computed", "n_params_note", "input_embedding_params", "source", "notes")
VENDORS = {"nvidia", "geforce", "tesla", "gpu"}  # words of a name that do not tell one GPU from another
NEEDED = (
    *("model", "gpu", "method", "seq_len", "micro_batch"),
    *("gradient_checkpointing", "attention", "dtype", "optimizer"),
)
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Any words for torch's own AdamW, whose default is foreach.
PLAIN_ADAMW = {"torch", "adamw", "fp32", "states", "foreach", "default"}
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"attention": ATTENTION_MODULES, "q,k,v,o": ATTENTION_MODULES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured row, with the request for its trace.

    layers: of the model. accumulation: micro-steps of an optimizer step. stack_matches: whether its libraries take the
    paths of the installed ones.
    """

    spec: GpuSpec
    request: TraceRequest
    batch: Batch
    layers: int
    accumulation: int
    stack_matches: bool


class Skipped(Exception):
    """A row cannot be predicted; the message says why."""


def read_files(points: Path, models: Path | None) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Read the rows, and the architectures by name. Raises UsageError listing every line that is no row with an id."""
    problems: list[str] = []

    def text(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            problems.append(f"{path}: cannot be read ({first_line(error)})")
            return ""

    rows = []
    for number, line in enumerate(text(points).splitlines(), start=1):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
            if isinstance(rows[-1], dict) and isinstance(rows[-1].get("id"), str):
                continue
        if line.strip():
            problems.append(f"{points}:{number}: got {line!r:.60}, expected a JSON object with an id")
    architectures: Any = {}
    if models is not None and (content := text(models)):
        with contextlib.suppress(ValueError):
            architectures = json.loads(content)
        if not isinstance(architectures, dict) or not all(isinstance(each, dict) for each in architectures.values()):
            problems.append(f"{models}: expected a JSON object of architectures, each an object, by name")
    if problems:
        raise UsageError(*problems)
    return rows, architectures


def half(identifier: str) -> str:
    """Return `tune` for a row that may be looked at while the code is changed, else `blind`."""
    return "tune" if int(sha256(identifier.encode()).hexdigest(), 16) % 2 == 0 else "blind"


def read(
    values: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], *, measured: str = "peak_alloc_bytes"
) -> Point:
    """Read what was run in a row. measured: the key of the measurement that is needed. Raises Skipped."""
    for wrong, why in (
        (values.get("tier") != "A", "tier A has the exact configuration, this is not in it"),
        (values.get("n_gpus") != 1, "more than one GPU"),
        (not str(values.get("kernels", "none")).startswith("none"), "foreign kernels"),
        (values.get("status") != "ok" or not values.get(measured), f"no {measured}"),
        (bool(missing := [name for name in NEEDED if values.get(name) is None]), f"not given: {', '.join(missing)}"),
        (str(values.get("quantization")).startswith("gptq"), "GPTQ is not trained here"),
    ):
        if wrong:
            raise Skipped(why)
    spec = gpu(values["gpu"])
    architecture = models.get(values["model"]) or catalogued_config(values["model"])
    if architecture is None:
        raise Skipped(f"architecture of {values['model']} is neither given nor in the catalogue")
    facts = {key: value for key, value in architecture.items() if key not in ABOUT_THE_MODEL}
    try:
        known = AutoConfig.for_model(**facts)
        text = known.get_text_config()
        config, layers, window = known.to_dict(), text.num_hidden_layers, sliding_window(text)
    except Exception as error:  # each class raises its own errors over a configuration that is not for it
        raise Skipped(f"architecture of {values['model']} cannot be built: {first_line(error)}") from error
    mixed = values.get("mixed_precision") or "no"
    candidate = Candidate(
        max_length=values["seq_len"],
        per_device_train_batch_size=values["micro_batch"],
        gradient_accumulation_steps=values.get("grad_accum") or 1,
        method=values["method"],
        checkpointing="full" if values["gradient_checkpointing"] else "off",
        attention=values["attention"].split()[0],
        optimizer=optimizer_of(values["optimizer"]),
        weights_dtype=DTYPES.get(values["dtype"], values["dtype"]),
        mixed_precision="no" if mixed.startswith("no") else mixed,
    )
    targets = values.get("lora_targets") or "all-linear"
    recipe = Recipe(
        method=candidate.method,
        lora_rank=values.get("lora_r") or 16,
        lora_target_modules=TARGETS.get(targets, tuple(targets.split(","))),
        max_grad_norm=0.0 if by_hand(values) else 1.0,
    )
    rows, length = values["micro_batch"], values["seq_len"]
    batch = Batch(rows=rows, positions=length, labels=rows * (length - 1))
    request = request_of(
        batch,
        candidate,
        config=config,
        recipe=recipe,
        window=window,
        masked=False,
        loss="full_logits",
        capability=spec.capability,
    )
    return Point(
        spec=spec,
        request=request,
        batch=batch,
        layers=layers,
        accumulation=candidate.gradient_accumulation_steps,
        stack_matches=stack_matches(values.get("versions") or {}),
    )


def gpu(name: str) -> GpuSpec:
    """Find the GPU that a row names: the catalogue's name for it, or its file's, has all the words of the row's name.

    Several GPUs may fit, if they have the same kernels and workspaces. Raises Skipped.
    """
    words = gpu_words(name)
    named = catalogued_gpus().items()
    found = [spec for stem, spec in named if words and words <= gpu_words(f"{stem} {spec.name}")]
    if not found:
        raise Skipped(f"{name} is not in the catalogue")
    if len({(spec.capability, spec.workspace_bytes) for spec in found}) > 1:
        raise Skipped(f"{name} may be any of {', '.join(spec.name for spec in found)}")
    return found[0]


def gpu_words(name: str) -> set[str]:
    """Return the words of a GPU's name that tell it from others, in small letters."""
    return set(re.findall("rtx|[a-z0-9]+", name.lower())) - VENDORS


def optimizer_of(name: str) -> Optimizer:
    """Find the optimizer that a row names: by our name, also with "(foreach)" behind it, or torch's AdamW in words.

    Raises Skipped for any other, because its states would be a guess.
    """
    for known in VALUES["optimizer"]:
        if name.removesuffix(" (foreach)") == known:
            return known
    words = set(re.findall("[a-z0-9]+", name.lower()))
    if {"torch", "adamw"} <= words <= PLAIN_ADAMW:
        return "adamw_torch"
    raise Skipped(f"optimizer {name} is not known")


def stack_matches(versions: Mapping[str, str]) -> bool:
    """Return whether a row's libraries take the installed ones' paths: transformers of this major version, and no TRL.

    TRL until 0.2x kept logits, and cast adapters and norms in another way. Transformers 5 makes masks and caches in
    another way than 4.
    """
    installed = version("transformers").partition(".")[0]
    return versions.get("transformers", "").partition(".")[0] == installed and "trl" not in versions


def profile_of(point: Point, values: Mapping[str, Any], profiles: dict[str, Profile]) -> Profile:
    """Trace a row's step, or take the profile of an earlier row that differs only in its shape. Raises Skipped."""
    request = point.request
    script = [values.get(name) for name in ("quantization", "attention", "framework", "kernels")]
    key = key_of([describe_request(point.request), script])
    if key not in profiles:
        logging.set_verbosity_error()
        try:
            with foreign(values):
                profiles[key] = trace(request, prepare=partial(prepare, values, request))
        except Exception as error:  # whatever the libraries raise over this model, the other rows go on
            raise Skipped(f"cannot be traced: {type(error).__name__}: {first_line(error)}") from error
    return profiles[key]


def prepare(values: Mapping[str, Any], request: TraceRequest, model: Any) -> Any:
    """Change a model as a row's script does before it trains.

    TRL casts the adapters of a quantized model to bf16; a script with its own loop leaves them in PEFT's fp32.
    """
    method = request.candidate.method
    if method == "qlora" and (by_hand(values) or "kbit" in str(values.get("kernels"))):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method == "full" or not by_hand(values):
        return model
    model = get_peft_model(model, sft.lora_config(request.recipe))
    model.is_loaded_in_4bit = False
    return model


def by_hand(values: Mapping[str, Any]) -> bool:
    """Whether the row's step is a loop of its own: `out = model(...)`, so that the logits live until the next one."""
    return "manual" in str(values.get("framework"))


@contextlib.contextmanager
def foreign(values: Mapping[str, Any]) -> Iterator[None]:
    """Set what a row's script sets in another way than this project, as long as the context lasts."""
    ours = sft.quantization_config

    def quantization_config(candidate: Candidate) -> Any:
        config = ours(candidate)
        if candidate.method == "qlora":
            config.bnb_4bit_use_double_quant = values.get("quantization") == "nf4-dq"
            config.bnb_4bit_compute_dtype = getattr(torch, candidate.weights_dtype)
        return config

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sft, "quantization_config", quantization_config))
        stack.enter_context(patch.object(LogitsTrainer, "keeps_outputs", by_hand(values)))
        if "k/v expanded" in values["attention"]:
            sdpa = transformers.integrations.sdpa_attention
            stack.enter_context(patch.object(sdpa, "use_gqa_in_sdpa", lambda *_: False))
        yield
