"""The keys of each command: their types, units, defaults and limits.

The files of `conf/` choose values, these dataclasses give types and defaults, and Hydra composes both. requests.py then
turns the settings into core types. The docstring under a field is its help text: keys.py reads it from this file.
`candidate.*` is made from core/knobs.py. `recipe.*` has the names and defaults of core/recipe.py; a test compares them.

Three things look unusual because of Hydra (hydra-core 1.3.8, omegaconf 2.3.1):
- The classes are not frozen, because a frozen dataclass cannot be a primary schema.
- Words are `str` with a limit, because OmegaConf refuses `Literal`.
- Lists stand where core has tuples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

from autotune.cli.limits import Limit, number, one_of
from autotune.core.candidate import Fidelity
from autotune.core.hardware import Device
from autotune.core.knobs import DEFAULTS, KNOBS, TYPES, VALUES
from autotune.core.recipe import METHODS
from autotune.models.catalogue import CONF
from autotune.search.samplers import SAMPLERS

# The members of transformers.trainer_utils.SchedulerType (5.23) that suit fine-tuning and need no further arguments.
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup")
LARGEST_SEED = 2**32 - 1  # of numpy.random.seed, which transformers.set_seed calls with our seed
FREE_FORM = {  # what a group takes beside its options: the key that holds it, and the words for it
    "model": ("model.path", "a hub id (owner/name) or a local directory"),
    "data": ("data.path", "a hub id (owner/name) or a local path"),
    "hardware": ("hardware.file", "FILE.json as another probe wrote it"),
}
CACHE = "~/.cache/autotune"  # where caches are kept unless home or AUTOTUNE_HOME names another place


@dataclass(kw_only=True)
class ProbeSettings:
    """Keys of every command."""

    format: str = one_of(("text", "json"), "text")
    """what is printed on stdout: text for people, or one JSON object"""
    home: str = f"${{oc.env:AUTOTUNE_HOME,'{CACHE}'}}"
    """directory of the caches; default: AUTOTUNE_HOME, else ~/.cache/autotune"""
    refresh: bool = False
    """measure the machine again, even if its probe is in the cache"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(kw_only=True)
class HardwareSettings:
    """The machine: the one at hand, unless a file or a GPU of the catalogue is named."""

    device: str = one_of(("auto", "cpu"), "auto")
    """what trains on this machine; auto: the first GPU, or the CPU without one; cpu: the CPU, even if there is a GPU"""
    file: str | None = None
    """file that `autotune probe format=json` wrote, on this machine or, for estimate, on another"""
    gpu: dict[str, Any] = field(default_factory=dict)
    """facts about a GPU that is not at hand; an option of the catalogue sets them; only for estimate"""


@dataclass(kw_only=True)
class ModelSettings:
    """The model."""

    path: str | None = None
    """name of a shipped model, hub id (owner/name), or local directory; :text behind it: its text backbone alone"""
    config: dict[str, Any] = field(default_factory=dict)
    """architecture, in the keys of config.json; only for estimate; empty: the model's own"""


@dataclass(kw_only=True)
class DataSettings:
    """The dataset."""

    path: str | None = None
    """demo, hub id (owner/name), or a local .json, .jsonl, .csv or .parquet file, or directory"""
    columns: dict[str, str] = field(default_factory=dict)
    """the names that your columns have, such as '{question: q, answer: a}'"""
    split: str | None = None
    """the split of the data that is trained on; null: train, or the only one"""


@dataclass(kw_only=True)
class RecipeSettings:
    """The training that is asked for."""

    method: str | None = one_of(METHODS)
    """how the weights are trained; null: full, and at fidelity=free whichever is fastest"""
    effective_batch_size: int = number(16, at_least=1)
    """samples per optimizer step, over all devices; a search does not change it"""
    epochs: float = number(1.0, above=0)
    """passes over the data"""
    max_steps: int | None = number(at_least=1)
    """optimizer steps after which training ends; null: train all epochs"""
    learning_rate: float | None = number(above=0)
    """peak learning rate; null: 2e-5 for full, 2e-4 for adapters"""
    lr_scheduler_type: str = one_of(SCHEDULERS, "cosine")
    """how the learning rate changes over the steps"""
    warmup_ratio: float = number(0.03, at_least=0, below=1)
    """share of the steps in which the learning rate rises"""
    weight_decay: float = number(0.01, at_least=0)
    """decoupled weight decay of the optimizer"""
    max_grad_norm: float = number(1.0, at_least=0)
    """norm that gradients are clipped to; 0: no clipping"""
    coverage: float = number(1.0, above=0, at_most=1)
    """share of the dataset's tokens that must remain after truncation"""
    assistant_only_loss: bool = False
    """compute the loss on the assistant's turns only"""
    completion_only_loss: bool | None = None
    """compute the loss on the completion only; null: TRL decides by the form of the data"""
    neftune_noise_alpha: float | None = number(above=0)
    """strength of the noise on the embeddings (NEFTune); null: no noise"""
    lora_rank: int = number(16, at_least=1)
    """rank of the adapters"""
    lora_alpha: int = number(32, at_least=1)
    """scale of the adapters; their output is multiplied by alpha / rank"""
    lora_dropout: float = number(0.0, at_least=0, below=1)
    """dropout on the input of the adapters"""
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"limit": Limit(named=True)}
    )
    """names of the modules that get an adapter; [all-linear]: all linear layers but the head, as PEFT chooses them"""


def with_a_key_for_each_knob(cls: type[Any]) -> type[Any]:
    """Make a dataclass with the name and the docstring of `cls`, and with a field for each knob of core/knobs.py.

    All fields are None by default. Their descriptions are the words of the knobs.
    """
    keys: list[tuple[str, Any, Any]] = []
    for name, knob in KNOBS.items():
        hint, limit = TYPES[name], {}
        if knob.least is not None:
            hint, limit = int, {"limit": Limit(at_least=knob.least)}
        elif hint is not bool:
            hint, limit = str, {"limit": Limit(choices=VALUES[name])}
        keys.append((name, hint | None, field(default=None, metadata={"doc": knob.words, **limit})))
    namespace = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return make_dataclass(cls.__name__, keys, kw_only=True, namespace=namespace)


@with_a_key_for_each_knob
class CandidateSettings:
    """One configuration, in the libraries' own words. Null leaves a knob to the search, and in a run to its default."""


@dataclass(kw_only=True)
class BudgetSettings:
    """When a search ends: at the limit that comes first."""

    minutes: float | None = number(30.0, above=0)
    """most minutes of wall-clock time; null: no limit"""
    trials: int | None = number(at_least=2)
    """most trials, with the baseline and by_hand; null: no limit"""


@dataclass(kw_only=True)
class SamplerSettings:
    """How a search chooses its candidates."""

    name: str = one_of(SAMPLERS, "roofline")
    """method that proposes the next candidate"""


@dataclass(kw_only=True)
class WorkloadSettings(ProbeSettings):
    """Keys of the commands that are asked about a training."""

    hardware: HardwareSettings = field(default_factory=HardwareSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    candidate: CandidateSettings = field(default_factory=CandidateSettings)


@dataclass(kw_only=True)
class TrainingSettings(WorkloadSettings):
    """Keys of the commands that train."""

    seed: int = number(42, at_least=0, at_most=LARGEST_SEED)
    """seed for the order of the samples, for new weights, and for the sampler"""
    out: str | None = None
    """directory for the results; null: a new one in runs/, or run/ beside the run file"""


@dataclass(kw_only=True)
class SearchSettings(TrainingSettings):
    """Keys of `autotune search`; `candidate.*` fixes knobs."""

    fidelity: Fidelity = Fidelity.close
    """how far a candidate may move from the training that was asked for"""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    explain: bool = False
    """list why combinations of knobs are not legal"""


@dataclass(kw_only=True)
class RunRecipeSettings(RecipeSettings):
    """The training of a run, whose candidate says how many samples a step holds."""

    effective_batch_size: int | None = number(at_least=1)  # type: ignore[assignment]
    """samples per optimizer step; null: as many as the candidate's micro-batches hold"""


@dataclass(kw_only=True)
class RunSettings(TrainingSettings):
    """Keys of `autotune run`, on the command line and in its file.

    These must be given in one of the two places: `model.path`, `data.path`, and the knobs of `candidate` that have no
    default (max_length, per_device_train_batch_size, gradient_accumulation_steps, method). In the file, `model: PATH`
    is short for `model: {path: PATH}`, and `data: PATH` for `data: {path: PATH}`.
    """

    recipe: RunRecipeSettings = field(default_factory=RunRecipeSettings)
    device: str | None = one_of(get_args(Device))
    """kind of device that the candidate was found for; null: any"""


@dataclass(kw_only=True)
class EstimateSettings(WorkloadSettings):
    """Keys of `autotune estimate`. Knobs of `candidate.*` that are not set have TRL's defaults."""

    loss: str = one_of(("fused", "full_logits"), "fused")
    """fused: TRL's head, which never holds all logits; full_logits: a head that keeps them, as in other trainers"""
    seed: int = number(42, at_least=0, at_most=LARGEST_SEED)
    """seed for the order of the samples"""
    price_per_hour: float | None = number(above=0)
    """price of the device, in any currency; with data, the estimate then says what the training costs"""


def options(group: str) -> tuple[str, ...]:
    """List the names of the options that ship for a group of conf/."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def group_words(group: str) -> str:
    """Say what a group takes: its options, and its free form if it has one."""
    return ", ".join(options(group)) + (f", {FREE_FORM[group][1]}" if group in FREE_FORM else "")


def find_problems(settings: ProbeSettings) -> list[str]:
    """List what is wrong with composed settings: values outside their limits, and missing keys."""
    found = [
        f"{key}={value}: must be {limit.words}"
        for key, value, limit in _leaves(settings)
        if limit is not None and value is not None and not limit.allows(value)
    ]
    if isinstance(settings, EstimateSettings) and not settings.model.path:
        found.append(f"model= is missing: expected {group_words('model')}")
    if isinstance(settings, TrainingSettings):
        found += [
            f"{group}= is missing: expected {group_words(group)}"
            for group, value in (("model", settings.model.path), ("data", settings.data.path))
            if not value
        ]
    if isinstance(settings, SearchSettings) and settings.budget.minutes is None and settings.budget.trials is None:
        found.append("budget.minutes and budget.trials are both null: a search needs one of them to end")
    if isinstance(settings, SearchSettings) and settings.sampler.name == "gp" and find_spec("scipy") is None:
        found.append("sampler=gp: needs scipy, which is not installed; `pip install 'autotune-sft[gp]'` brings it")
    if isinstance(settings, RunSettings):
        found += [
            f"candidate.{knob} is missing: a run needs a complete candidate, as in the run.yaml of a search"
            for knob in KNOBS
            if knob not in DEFAULTS and getattr(settings.candidate, knob) is None
        ]
    return found


def store_configs(run_file: Mapping[str, Any]) -> None:
    """Register the settings, and the values of a run file, with Hydra under the names that conf/ uses."""
    from hydra.core.config_store import ConfigStore

    _store_schemas()
    ConfigStore.instance().store(name="run_file", node=dict(run_file))


@cache
def _store_schemas() -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="probe_schema", node=ProbeSettings)
    store.store(name="estimate_schema", node=EstimateSettings)
    store.store(name="search_schema", node=SearchSettings)
    store.store(name="run_schema", node=RunSettings)


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Limit | None]]:
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item.metadata.get("limit")
