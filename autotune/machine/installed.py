"""The installed stack, as plain facts: what importlib and PATH say, without importing any of it."""

import os
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from autotune.core.space.context import Installed

__all__ = ["Installed", "installed"]

DISTRIBUTIONS = (
    "autotune-sft",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "optuna",
    "flash-attn",
    "flash-attn-3",
    "kernels",
    "liger-kernel",
    "triton",
)
COMPILERS = ("g++", "clang++")  # what torch's inductor looks for on Linux when CXX is not set


@cache
def installed() -> Installed:
    """Read the facts of this interpreter's environment; they do not change while it runs."""
    versions = {name: found for name in DISTRIBUTIONS if (found := _version(name)) is not None}
    return Installed(
        versions=versions,
        flash_attention_2="flash-attn" in versions and "flash-attn" in _owners("flash_attn"),
        flash_attention_3="flash-attn-3" in versions and "flash-attn-3" in _owners("flash_attn_interface"),
        kernels="kernels" in versions,
        cpp_compiler=any(map(shutil.which, (os.environ["CXX"],) if "CXX" in os.environ else COMPILERS)),
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _owners(module: str) -> set[str]:
    """Distributions that provide a module: FlashAttention 4 shares its module's name with 2."""
    return {name.replace("_", "-") for name in packages_distributions().get(module, ())}
