"""The knobs: all that a search may change, each with its type, its default and what else is true of it.

This is the only list of knobs. Every other list is made from it: the keys `candidate.*` and their help, the values that
a search tries, what the cache of traces and the predictions tell apart, the arguments of the trainer, and the names of
candidates. docs/extending.md says how to add one.

A knob has the name that the libraries give it. What the user asked for (learning rate, epochs, LoRA rank) is in
core/recipe.py. core/space/ says which values a machine can have, and how far each one moves the training.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from autotune.core.recipe import Method

Checkpointing = Literal["off", "selective", "every_n", "full"]
Batching = Literal[
    "random", "batch_rebalance", "group_by_length", "pack_bfd", "pack_bfd_split", "pack_wrapped", "padding_free"
]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
Dtype = Literal["float32", "bfloat16", "float16"]
MixedPrecision = Literal["bf16", "fp16", "no"]
Sharding = Literal["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]

# The space gives values to one group of knobs after another, in this order (core/space/enumerate.py). A rule may read
# the knobs of a group together with those of groups before it, but independent knobs only by themselves.
Group = Literal["step", "method", "numbers", "checkpointing", "attention", "independent"]
Change = Literal["trace", "batches", "samples", "time"]


@dataclass(frozen=True, slots=True)
class Knob:
    """What is true of one knob, beside its name, its type and its default.

    words: its help text.
    group: the knobs that get their values together with it.
    changes: what another value of it changes. A knob that changes none of these does not change the predicted time.
        trace: the operators and the memory of a traced step. Each value has traces of its own.
        batches: the micro-batches that the dataset is dealt into.
        samples: which samples of the dataset an optimizer step holds.
        time: how long the operators of one and the same trace take, or how often they run.
    least: the smallest number that makes sense. None: the knob is not a number.
    tried: the values that a search tries. None: all values that the knob can have; for a number of the group `step`
        those that suit the dataset (core/space/step_shapes.py).
    gpu_only: whether a search on a CPU tries the default alone.
    derived: whether it follows from other knobs and from the recipe.
    passed_on: whether TRL's SFTConfig takes the value as it is, under this name. train/sft.py translates other knobs.
    short: how names of candidates show it where it is set, with {} for its value.
    """

    words: str
    _: KW_ONLY
    group: Group
    changes: tuple[Change, ...]
    least: int | None = None
    tried: tuple[Any, ...] | None = None
    gpu_only: bool = False
    derived: bool = False
    passed_on: bool = False
    short: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """A value of every knob. A knob without a default must be given."""

    # TRL cuts a sample of a packed row at the row's length, so with packing the two lengths are equal.
    max_length: Annotated[
        int, Knob("tokens at which a sample is cut", group="step", changes=("batches", "samples"), least=1)
    ]
    per_device_train_batch_size: Annotated[
        int, Knob("rows of a micro-batch", group="step", changes=("batches",), least=1, passed_on=True)
    ]
    # An optimizer step then holds the samples that the recipe asks for. With packing it is the nearest number of rows.
    gradient_accumulation_steps: Annotated[
        int,
        Knob(
            "micro-batches per optimizer step; a search derives it",
            group="step",
            changes=("batches", "time"),
            least=1,
            derived=True,
            passed_on=True,
        ),
    ]
    method: Annotated[Method, Knob("how the weights are trained", group="method", changes=("trace",))]
    packed_length: Annotated[
        int | None, Knob("tokens of a packed row", group="step", changes=("batches", "samples"), least=1)
    ] = None  # without packing
    checkpointing: Annotated[
        Checkpointing,
        Knob("which activations are computed again in the backward pass", group="checkpointing", changes=("trace",)),
    ] = "off"
    every_n_layers: Annotated[
        int,
        Knob(
            "with checkpointing=every_n: one decoder layer in this many is checkpointed",
            group="checkpointing",
            changes=("trace",),
            least=1,
            tried=(1, 2, 4),
        ),
    ] = 1  # unless checkpointing is `every_n`
    activation_offloading: Annotated[
        bool,
        Knob(
            "saved activations wait in host memory",
            group="independent",
            changes=("trace",),
            passed_on=True,
            short="offload",
        ),
    ] = False
    batching: Annotated[
        Batching, Knob("which samples share a micro-batch or a row", group="step", changes=("batches", "samples"))
    ] = "random"
    attention: Annotated[Attention, Knob("implementation of attention", group="attention", changes=("trace",))] = "sdpa"
    optimizer: Annotated[
        Optimizer, Knob("optimizer, by the name that transformers gives it", group="independent", changes=("trace",))
    ] = "adamw_torch_fused"
    weights_dtype: Annotated[
        Dtype, Knob("type that the weights are loaded in", group="numbers", changes=("trace",))
    ] = "float32"
    mixed_precision: Annotated[
        MixedPrecision, Knob("type that autocast computes in", group="numbers", changes=("trace",))
    ] = "bf16"
    tf32: Annotated[
        bool, Knob("matrix products of fp32 in tf32 (CUDA)", group="numbers", changes=("time",), short="tf32")
    ] = False
    # Tensor cores want multiples of 8. With 64 there are fewer different lengths.
    pad_to_multiple_of: Annotated[
        int | None,
        Knob(
            "row lengths are padded to a multiple of it",
            group="independent",
            changes=("batches",),
            least=1,
            tried=(None, 8, 64),
            gpu_only=True,
            passed_on=True,
            short="pad {}",
        ),
    ] = None
    # On a CPU compiling takes minutes of each trial. The step that is traced is not compiled.
    torch_compile: Annotated[
        bool, Knob("compile the model", group="numbers", changes=(), gpu_only=True, passed_on=True, short="compile")
    ] = False
    use_kernels: Annotated[
        bool,
        Knob(
            "take fused kernels where they are installed",
            group="independent",
            changes=("trace",),
            gpu_only=True,
            short="kernels",
        ),
    ] = False
    dataloader_num_workers: Annotated[
        int,
        Knob(
            "processes that load data; 0: the trainer itself",
            group="independent",
            changes=(),
            least=0,
            tried=(0, 2),
            passed_on=True,
            short="workers {}",
        ),
    ] = 0
    # Pinned memory is never slower on a GPU, and a CPU does not use it.
    dataloader_pin_memory: Annotated[
        bool, Knob("batches wait in pinned host memory", group="independent", changes=(), tried=(True,))
    ] = True
    torch_threads: Annotated[
        int | None,
        Knob(
            "threads of one CPU operator", group="independent", changes=(), least=1, tried=(None,), short="threads {}"
        ),
    ] = None  # torch's choice
    tuned_allocator: Annotated[
        bool,
        Knob(
            "expandable segments on CUDA; on a CPU glibc keeps freed pages",
            group="independent",
            changes=(),
            tried=(True,),
            short="malloc",
        ),
    ] = True
    # Training on several devices is not supported yet (core/space/legality.py).
    devices: Annotated[int, Knob("how many devices train", group="step", changes=("batches",), least=1, tried=(1,))] = 1
    sharding: Annotated[
        Sharding, Knob("how several devices share the model", group="step", changes=(), tried=("none",))
    ] = "none"


def _values(hint: Any) -> tuple[Any, ...]:
    """All values of a type; of a number none are listed."""
    if hint is bool:
        return (False, True)
    return get_args(hint) if get_origin(hint) is Literal else ()


KNOBS: Mapping[str, Knob] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Knobs, include_extras=True).items()
}
TYPES: Mapping[str, Any] = get_type_hints(Knobs)
VALUES: Mapping[str, tuple[Any, ...]] = {name: _values(hint) for name, hint in TYPES.items()}
DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Knobs) if field.default is not MISSING}
DERIVED: tuple[str, ...] = tuple(name for name, knob in KNOBS.items() if knob.derived)


def knobs_in(group: Group) -> tuple[str, ...]:
    """Name the knobs of a group."""
    return tuple(name for name, knob in KNOBS.items() if knob.group == group)


def knobs_that_change(what: Change) -> tuple[str, ...]:
    """Name the knobs with this among their `changes`."""
    return tuple(name for name, knob in KNOBS.items() if what in knob.changes)
