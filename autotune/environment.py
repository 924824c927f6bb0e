"""The environment variables of everything that trains: which are passed on, which are taken away, and why.

Launchers, schedulers and shells leave variables that the libraries read in place of what a configuration says. Whoever
starts a command calls `take_away` first, so that all processes inherit what is left. Leaves out the variables that
autotune sets itself (train/task.py, train/fork_server.py, child.py), which do not depend on the user's.

accelerate 1.15, torch 2.13, transformers 5.23.
"""

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from autotune.errors import UsageError

Fate = Literal["taken away", "passed on", "set"]
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate looks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """Variables that are treated alike. names: patterns of names."""

    names: tuple[str, ...]
    fate: Fate
    why: str


# The first row that has a variable's name counts. What no row has is passed on.
VARIABLES: tuple[Variables, ...] = (
    Variables(
        names=("ACCELERATE_*", "FSDP_*", "DEEPSPEED_*", "MEGATRON_*", "PARALLELISM_CONFIG_*", "FORK_LAUNCHED"),
        fate="taken away",
        why="accelerate would take precision, compilation and sharding from them, and not from the candidate",
    ),
    Variables(
        names=(
            "WORLD_SIZE",
            "RANK",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "NODE_RANK",
            "GROUP_RANK",
            "GROUP_WORLD_SIZE",
            "ROLE_*",
            "MASTER_ADDR",
            "MASTER_PORT",
            "TORCHELASTIC_*",
            "PMI_*",
            "PMIX_*",
            "OMPI_COMM_WORLD_*",
            "MV2_COMM_WORLD_*",
            "SM_HP_MP_PARAMETERS",
            "SM_FRAMEWORK_PARAMS",
            "SMDATAPARALLEL_*",
        ),
        fate="taken away",
        why="the trainer would wait for other processes; one process trains here",
    ),
    Variables(
        names=("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_SUPPRESS_ERRORS", "PYTORCH_JIT"),
        fate="taken away",
        why="torch would not compile, whatever candidate.torch_compile says",
    ),
    Variables(
        names=("USE_HUB_KERNELS",),
        fate="taken away",
        why="candidate.use_kernels says whether kernels of the hub are used",
    ),
    Variables(
        names=("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        fate="taken away",
        why="candidate.tf32 decides in which type products are computed",
    ),
    Variables(
        names=("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING"),
        fate="taken away",
        why="they are for debugging: every step would be slower, or take other memory than it does without them",
    ),
    Variables(
        names=("CUDA_VISIBLE_DEVICES",),
        fate="set",
        why="a trainer sees the one device that it uses, of those that the user's value leaves visible",
    ),
    Variables(
        names=("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        fate="set",
        why="the user's settings are kept, and candidate.tuned_allocator decides about expandable_segments",
    ),
    Variables(
        names=("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS"),
        fate="set",
        why="the rows are tokenized already, and nothing is to be sent or shown",
    ),
    Variables(
        names=("TRANSFORMERS_VERBOSITY",),
        fate="set",
        why="warnings of transformers go to the log of a trial",
    ),
    Variables(
        names=("PYTHONSAFEPATH",),
        fate="set",
        why="files of the current directory that are named like libraries must not be imported for them",
    ),
    Variables(
        names=("PYTHONPATH",),
        fate="set",
        why="the user's directories are kept; an empty entry would be the current directory, and is left out",
    ),
    Variables(
        names=("PYTHONIOENCODING",),
        fate="set",
        why="a library must not fail because it prints a character that the terminal lacks; logs are UTF-8",
    ),
    Variables(
        names=("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "XDG_CACHE_HOME"),
        fate="passed on",
        why="where the hub is, who asks, and where downloads are kept",
    ),
    Variables(
        names=("OMP_*", "MKL_*", "KMP_*", "GOMP_*", "OPENBLAS_*", "ONEDNN_*", "DNNL_*", "ATEN_CPU_CAPABILITY"),
        fate="passed on",
        why="how a CPU computes, in the probe as in trials and runs; candidate.torch_threads decides where it is set",
    ),
    Variables(
        names=("CUDA_*", "CUBLAS_*", "CUDNN_*", "NVIDIA_*", "LD_*", "BNB_*", "NCCL_*", "TORCH_*", "TORCHINDUCTOR_*"),
        fate="passed on",
        why="which libraries are loaded, how they choose kernels, and where they keep compiled ones",
    ),
    Variables(
        names=("PYTORCH_*", "TRITON_*", "TORCHDYNAMO_*", "AOT_*", "INDUCTOR_*", "FLASH_ATTENTION_DETERMINISTIC"),
        fate="passed on",
        why="how torch chooses and compiles kernels, the same in the probe as in trials and runs",
    ),
    Variables(
        names=("SLURM_*", "SBATCH_*", "PBS_*", "LSB_*", "KUBERNETES_*"),
        fate="passed on",
        why="a scheduler's own; nothing that trains here reads them",
    ),
    Variables(
        names=("WANDB_*", "MLFLOW_*", "COMET_*", "NEPTUNE_*", "CLEARML_*", "SWANLAB_*", "TENSORBOARD_*"),
        fate="passed on",
        why="trackers, which are not called (`report_to` is none)",
    ),
    Variables(
        names=("DATASETS_VERBOSITY", "TQDM_*", "NO_COLOR", "DISABLE_TELEMETRY", "DO_NOT_TRACK"),
        fate="passed on",
        why="what is shown and sent, and not what is trained",
    ),
    Variables(
        names=("XLA_*", "PJRT_DEVICE", "TPU_NAME", "USE_TORCH_XLA", "HIP_*", "ROCR_*", "ZE_*", "PT_HPU_*"),
        fate="passed on",
        why="for TPUs and for GPUs of other makers, on which autotune does not train",
    ),
    Variables(
        names=("PYTHON*",),
        fate="passed on",
        why="how Python runs, the same in every process",
    ),
)


def fate_of(name: str) -> Variables | None:
    """Find what happens to a variable. None where no row names it; it is passed on."""
    return next((row for row in VARIABLES if any(fnmatchcase(name, pattern) for pattern in row.names)), None)


def take_away(environ: MutableMapping[str, str]) -> list[str]:
    """Remove what would train something else than the configuration says, and return a line for each reason.

    Raises UsageError in any but the first process that a launcher has started: each would train the same.
    """
    for name in RANKS:
        rank = environ.get(name, "")
        if rank.isdecimal() and int(rank) > 0:
            raise UsageError(
                f"{name}={rank}: a launcher has started several processes of autotune, and each would do the same; "
                "start it once, without torchrun, accelerate launch or mpirun"
            )
    environ["PYTHONSAFEPATH"] = "1"
    environ["PYTHONIOENCODING"] = "utf-8:replace"
    if "PYTHONPATH" in environ:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, environ["PYTHONPATH"].split(os.pathsep)))
    return list(_removed(environ))


def leave_empty_entry(path: list[str], environ: Mapping[str, str]) -> None:
    """Take the current directory off `path`, this process's, if only an empty entry of PYTHONPATH has put it there.

    `PYTHONPATH=$PYTHONPATH:/more` has an empty entry where PYTHONPATH was not set, and few people mean that.
    """
    entries = environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(entries) < 2 or "" not in entries:
        return
    with suppress(OSError, ValueError):  # the directory is gone, or stands there for another reason
        current = os.getcwd()
        if current not in map(os.path.abspath, filter(None, entries)):
            path.remove(current)


def _removed(environ: MutableMapping[str, str]) -> Iterator[str]:
    for row in VARIABLES:
        if row.fate != "taken away":
            continue
        taken = sorted(name for name in environ if fate_of(name) is row)
        if taken:
            yield f"not passed on: {', '.join(f'{name}={environ.pop(name)}' for name in taken)} ({row.why})"
