"""result.json, key by key: what a search found, for other programs.

run_directory.py fills these dataclasses from the findings of a search, and `read_result` reads a file back. The
published schema (cli/schema.py) is written from them. A rate is in useful tokens per second.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autotune.core.batches.trained import Trained
from autotune.core.candidate import Candidate, Fidelity
from autotune.core.decode import decode
from autotune.core.hardware import Hardware
from autotune.core.memory.calibration import MemoryCalibration
from autotune.core.outcome import Outcome
from autotune.core.recipe import Recipe
from autotune.core.trials.parity import NotCompared
from autotune.core.trials.trial import Role
from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.formats import RESULT_FORMAT, format_problem
from autotune.search.predicted_memory import Miss, PredictedMemory

Value = bool | int | str | None  # of a knob


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial."""

    number: int
    """place among all trials of the search, from 0"""
    role: Role
    """why it was tried"""
    of: int | None
    """the trial that a repeat repeats"""
    round: int | None
    """round of the second measurement that a repeat belongs to"""
    candidate: Candidate
    estimate: PredictedMemory | None
    """null if the step of the candidate could not be traced"""
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast one candidate is as another."""

    ratio: float
    low: float
    """lower end of the 95 % interval"""
    high: float
    """upper end of the 95 % interval"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The first optimizer steps of the baseline and the winner, from the same weights and on the same samples."""

    baseline: tuple[float, ...]
    """loss of each step"""
    best: tuple[float, ...]
    """loss of each step"""
    reordered: tuple[float, ...]
    """loss of each step of the baseline, with the same samples in another order"""
    difference: float
    """distance between the losses of the winner and the baseline, on average over the steps"""
    between_orders: float
    """distance between the mean losses of the two orders"""
    allowed: float | None
    """largest difference that the fidelity permits; null: any"""
    as_asked: bool
    """whether the difference is permitted"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRate:
    """What is known about the rate of a candidate, as if the machine were as fast as around the first trial."""

    candidate: Candidate
    source: Literal["measured", "predicted"]
    trial: int | None
    """the trial that measured it; null: predicted"""
    useful_tokens_per_s: float
    deviation: float | None
    """standard deviation of the logarithm of the rate; null if a single step was measured"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival(KnownRate):
    """The fastest candidate with another value of a knob."""

    value: Value
    """its value of the knob"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptResult:
    """What the winner's value of one knob brings, compared with the best candidate that has another value."""

    knob: str
    value: Value
    """the winner's value"""
    gain: float
    """share by which the winner is faster than the rival"""
    gain_interval: tuple[float, float] | None
    """95 % interval of the gain; null if it is not known"""
    without: Rival


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceResult:
    """How many candidates there are."""

    enumerated: int
    """combinations of values"""
    legal: int
    """combinations that the installed libraries take"""
    fitting: int
    """legal candidates that no prediction has ruled out"""
    removed: Mapping[str, int]
    """how many combinations each rule has removed, by its reason"""
    left_out: Mapping[str, str]
    """values that this machine, model or stack cannot have, such as `attention=flash_attention_2`, and why"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataResult:
    """The dataset."""

    path: str
    """as it was asked for"""
    name: str
    form: str
    rows: int
    """rows that were tokenized"""
    tokens: int
    useful_tokens: int
    """tokens that count for the loss"""
    longest: int
    """tokens of the longest row"""
    fingerprint: str
    split: str | None = None
    """the split that was trained on; null where the data has no splits"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResult:
    """What was to be trained on what."""

    model: ModelFacts
    data: DataResult
    recipe: Recipe
    fidelity: Fidelity
    fixed: Mapping[str, Value]
    """knobs that the user fixed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a search found."""

    format: int = 1
    """number of this file's format; files without it have 1"""
    answer: str
    """the result in one sentence"""
    best: TrialResult
    """the winner"""
    baseline: TrialResult
    """TRL's defaults, at the effective batch and the coverage of the recipe"""
    baseline_differs: Mapping[str, tuple[Value, Value]]
    """knobs in which the baseline had to leave TRL's defaults: TRL's value and the baseline's"""
    by_hand: TrialResult
    """what a careful person would set; the baseline if no settings by hand were tried"""
    speedup: float | None
    """rate of the winner as a multiple of the baseline's; null if it was not measured twice"""
    speedup_interval: tuple[float, float] | None
    """95 % interval of the speed-up"""
    speedup_by_hand: float | None
    """rate of the winner as a multiple of that of by_hand; null if it was not measured twice"""
    speedup_by_hand_interval: tuple[float, float] | None
    """95 % interval of the speed-up over by_hand"""
    speedup_once: Ratio | None
    """speed-up by the first measurement alone, if no time was left for a second and the winner is far ahead"""
    second_measurement: Mapping[str, tuple[float, ...]]
    """rate in each round, by the number of the trial that was repeated"""
    trials: tuple[TrialResult, ...]
    """all trials, in their order"""
    trained: Trained | None = None
    """what one epoch of the winner trains of the rows that were tokenized; null in files of earlier versions"""
    losses: Losses | NotCompared | None
    """null if the baseline won"""
    receipts: tuple[ReceiptResult, ...]
    """what the winner's value of each knob brings"""
    without_receipt: tuple[str, ...]
    """knobs in which the winner differs from the baseline and for which no other value is known"""
    runner_up: KnownRate | None
    """the fastest of all other candidates"""
    calibration: Mapping[str, MemoryCalibration]
    """what measured peaks have taught about predicted memory, by method"""
    misses: tuple[Miss, ...]
    """trials that ran out of memory although they were predicted to fit"""
    space: SpaceResult
    wall_s: Mapping[str, float]
    """seconds of all sittings together, by what they were spent on"""
    hardware: Hardware
    workload: WorkloadResult
    versions: Mapping[str, str]
    """versions of the installed packages"""
    seed: int
    out: str
    """the run directory"""


def read_result(file: Path) -> Result:
    """Read a result.json. Raises UsageError when it is missing, is no result, or has a newer format."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    return parse_result(text, where=str(file))


def parse_result(text: str, *, where: str = "result") -> Result:
    """Read a result from JSON, as in result.json or as `autotune search format=json` prints it.

    Keys that this version does not know are ignored. Raises UsageError as `read_result` does. where: for the messages.
    """
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where}: is not JSON: {error}") from error
    if isinstance(values, Mapping) and (problem := format_problem(values, newest=RESULT_FORMAT, where=where)):
        raise UsageError(problem)
    return decode(values, Result, where=where, closed=False)
