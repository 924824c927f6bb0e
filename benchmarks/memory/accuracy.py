"""Predicted against publicly measured peaks of GPU memory: torch's own counters, from other people's runs.

    python -m benchmarks.memory.accuracy --points measured_points.jsonl --models models.json --json

Each row of the points says what was run and what `torch.cuda.max_memory_allocated` gave. `--models` holds the
architectures, and the catalogue (conf/) those that it lacks, so no hub and no GPU is needed. The rows are split by a
hash of their id into `tune`, which may be looked at while the code is changed, and `blind`, which may not. Rows of
other software paths than the installed one (`stack_matches` false) and with eager attention are counted apart.

What other people's scripts do and this project does not is imitated here: full logits, scales that are not quantized
themselves, and `prepare_model_for_kbit_training`.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers.integrations.sdpa_attention
import yaml
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig
from transformers.utils import logging

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.gpu_specs import GpuSpec, read_gpu_spec
from autotune.core.knobs import VALUES, Optimizer
from autotune.core.memory.allocator import AllocatorSettings
from autotune.core.memory.law import Peak, memory_law, peak
from autotune.core.memory.replay import replay
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile, deepen
from autotune.errors import UsageError, first_line
from autotune.models.architectures import sliding_window
from autotune.models.catalogue import CONF, catalogued_config
from autotune.trace.plain_step import LogitsTrainer
from autotune.trace.profiles import ProfileRequest, describe_request, key_of, request_of
from autotune.trace.request import TraceRequest
from autotune.trace.trace import trace
from autotune.train import sft

DEFAULTS = AllocatorSettings(expandable_segments=False)
ABOUT_THE_MODEL = ("n_params_computed", "n_params_note", "input_embedding_params", "source", "notes")
FURTHER_GPUS = (  # that the catalogue lacks
    GpuSpec(
        name="NVIDIA GeForce RTX 4080",
        compute_capability="8.9",
        memory_gib=16,
        memory_is_reported=False,
        bandwidth_gb_s=716.8,
        sm_count=76,
        fp32_tflops=48.7,
        tf32_tflops=48.7,
        fp16_tflops=97.5,
        bf16_tflops=97.5,
        sources=("https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4080-family/",),
    ),
)
VENDORS = {"nvidia", "geforce", "tesla", "gpu"}  # words that do not tell GPUs apart
NEEDED = (
    *("model", "gpu", "method", "seq_len", "micro_batch"),
    *("gradient_checkpointing", "attention", "dtype", "optimizer"),
)
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
STEPS = 3  # that the allocator sees
PLAIN_ADAMW = {"torch", "adamw", "fp32", "states", "foreach", "default"}  # words for torch's own, which is foreach
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"attention": ATTENTION_MODULES, "q,k,v,o": ATTENTION_MODULES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured row, as a trace wants it. layers: of the model. accumulation: micro-steps of an optimizer step.

    measured_bytes: peak of allocated bytes, 0 where none was measured.
    """

    spec: GpuSpec
    request: ProfileRequest
    batch: Batch
    layers: int
    accumulation: int
    measured_bytes: int
    stack_matches: bool


class Skipped(Exception):
    """The row cannot be predicted; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every row and print the errors. Returns the exit code: 2 when a file is not what it should be."""
    arguments = _arguments(argv)
    logging.set_verbosity_error()
    try:
        points, models = read_files(arguments.points, arguments.models)
    except UsageError as error:
        print(*(f"memory_accuracy: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return error.exit_code
    profiles: dict[str, Profile] = {}

    def row_of(values: Mapping[str, Any]) -> dict[str, Any]:
        point = read(values, models)
        predicted, reserved = predict(point, values, profiles)
        allocated = predicted.bytes + point.spec.workspace_bytes
        measured_reserved = values.get("peak_reserved_bytes")
        return {
            "group": group(point),
            "stack_matches": point.stack_matches,
            "predicted_allocated_bytes": allocated,
            "predicted_reserved_bytes": reserved,
            "measured_bytes": point.measured_bytes,
            "measured_reserved_bytes": measured_reserved,
            "error": allocated / point.measured_bytes - 1,
            "reserved_error": reserved / measured_reserved - 1 if measured_reserved else None,
            "phase": predicted.phase,
        }

    found, skipped = collect(points, arguments.half, row_of)
    summary = {"rows": found, "skipped": skipped, **errors(found), "groups": {}}
    for key in sorted({(row["group"], row["half"]) for row in found}):
        summary["groups"][" ".join(key)] = errors([row for row in found if (row["group"], row["half"]) == key])
    reserved_errors = [{"error": row["reserved_error"]} for row in found if row["reserved_error"] is not None]
    if reserved_errors:
        summary["groups"]["reserved"] = errors(reserved_errors)
    print(json.dumps(summary) if arguments.json else json.dumps(summary["groups"], indent=1))
    return 0


def collect(
    points: Sequence[Mapping[str, Any]], wanted: str | None, row_of: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a half, or of both, and those that were skipped with the reason. row_of: has an `error`, or skips."""
    found, skipped = [], []
    for values in points:
        if wanted not in (None, half(values["id"])):
            continue
        try:
            row = {"id": values["id"], "half": half(values["id"]), **row_of(values)}
        except Skipped as reason:
            skipped.append({"id": values["id"], "why": str(reason)})
            continue
        found.append(row)
        print(f"{row['error']:+7.2%}  {row['id']}", file=sys.stderr, flush=True)
    return found, skipped


def read_files(points: Path, models: Path | None) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The rows, and the architectures by name. Raises UsageError listing every line that is not a row with an id."""
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
    """Whether a row may be looked at while the code is changed."""
    return "tune" if int(sha256(identifier.encode()).hexdigest(), 16) % 2 == 0 else "blind"


def group(point: Point) -> str:
    """What a row counts to."""
    if not point.stack_matches:
        return "other stack"
    return "eager" if point.request.candidate.attention == "eager" else "same stack"


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and 95th percentile of the absolute errors."""
    found = [abs(row["error"]) for row in rows]
    if not found:
        return {"count": 0, "median_abs_error": None, "p95_abs_error": None}
    return {
        "count": len(found),
        "median_abs_error": median(found),
        "p95_abs_error": float(np.quantile(found, 0.95)),
    }


def read(
    values: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], *, measured: str = "peak_alloc_bytes"
) -> Point:
    """What a row says was run. measured: the key that it must have. Raises Skipped."""
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
    except Exception as error:  # whatever a class raises over a configuration that is not its own
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
        measured_bytes=round(values.get("peak_alloc_bytes") or 0),
        stack_matches=stack_matches(values.get("versions") or {}),
    )


def gpu(name: str) -> GpuSpec:
    """The GPU that a row means: all words that it has are in the catalogue's name for it, or in that of its file.

    What several such GPUs have in common is enough: their kernels and workspaces. Raises Skipped.
    """
    words = gpu_words(name)
    found = [spec for known, spec in catalogued_gpus() if words and words <= known]
    if not found:
        raise Skipped(f"{name} is not in the catalogue")
    if len({(spec.capability, spec.workspace_bytes) for spec in found}) > 1:
        raise Skipped(f"{name} may be any of {', '.join(spec.name for spec in found)}")
    return found[0]


@cache
def catalogued_gpus() -> tuple[tuple[set[str], GpuSpec], ...]:
    """Every known GPU, with the words of its names."""
    files = [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in (CONF / "hardware").glob("*.yaml")]
    named = [(path.stem, read_gpu_spec(values["gpu"])) for path, values in sorted(files) if values.get("gpu")]
    return tuple((gpu_words(f"{stem} {spec.name}"), spec) for stem, spec in [*named, *(("", s) for s in FURTHER_GPUS)])


def gpu_words(name: str) -> set[str]:
    """The words of a GPU's name that tell it from others, in small letters."""
    return set(re.findall("rtx|[a-z0-9]+", name.lower())) - VENDORS


def optimizer_of(name: str) -> Optimizer:
    """What a row calls its optimizer: by our name, perhaps with torch's default beside it, or torch's AdamW in words.

    Raises Skipped for any other: its states would be a guess.
    """
    for known in VALUES["optimizer"]:
        if name.removesuffix(" (foreach)") == known:
            return known
    words = set(re.findall("[a-z0-9]+", name.lower()))
    if {"torch", "adamw"} <= words <= PLAIN_ADAMW:
        return "adamw_torch"
    raise Skipped(f"optimizer {name} is not known")


def stack_matches(versions: Mapping[str, str]) -> bool:
    """Whether a row took the paths of the installed libraries: transformers of the same major version, without TRL.

    TRL until 0.2x kept logits and cast adapters and norms otherwise; transformers 5 masks and caches otherwise than 4.
    """
    installed = version("transformers").partition(".")[0]
    return versions.get("transformers", "").partition(".")[0] == installed and "trl" not in versions


def predict(point: Point, values: Mapping[str, Any], profiles: dict[str, Profile]) -> tuple[Peak, int]:
    """The peak of a row's tensors and its reserved bytes. Raises Skipped where its step cannot be traced."""
    traced = profile_of(point, values, profiles)
    profile = deepen(traced, point.layers)
    steps = [[point.batch] * profile.micro_steps] * STEPS
    replayed = replay(profile, steps, accumulation=point.accumulation, settings=DEFAULTS)
    law = memory_law(traced, layers=point.layers, accumulation=point.accumulation)
    return peak(law, point.batch.monomials), replayed.reserved_bytes + point.spec.workspace_bytes


def profile_of(point: Point, values: Mapping[str, Any], profiles: dict[str, Profile]) -> Profile:
    """The profile of a row's step, which rows of other shapes share. Raises Skipped where it cannot be traced."""
    request = TraceRequest(**point.request.asked)
    script = [values.get(name) for name in ("quantization", "attention", "framework", "kernels")]
    key = key_of([describe_request(point.request), script])
    if key not in profiles:
        try:
            with foreign(values):
                profiles[key] = trace(request, prepare=partial(prepare, values, request))
        except Exception as error:  # whatever the libraries raise over this model, the other rows have theirs
            raise Skipped(f"cannot be traced: {type(error).__name__}: {first_line(error)}") from error
    return profiles[key]


def prepare(values: Mapping[str, Any], request: TraceRequest, model: Any) -> Any:
    """Do to a model what a row's script does before it trains.

    TRL casts the adapters of a quantized model to bf16; a loop of its own leaves them in PEFT's fp32.
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
    """What a row's script set otherwise than this project."""
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


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, required=True, help="JSON lines, a measured row each")
    parser.add_argument(
        "--models",
        type=Path,
        help="JSON object of architectures by the name that the rows have; others are looked up in the catalogue",
    )
    parser.add_argument("--half", choices=("tune", "blind"), help="only these rows")
    parser.add_argument("--json", action="store_true", help="one JSON object with every row")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
