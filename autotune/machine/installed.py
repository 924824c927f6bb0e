"""The installed libraries, as plain facts: read from their metadata and from PATH, without importing any of them."""

import os
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

from packaging.requirements import Requirement

from autotune.core.space.context import Installed

__all__ = ["Installed", "installed", "untested"]

OURS = "autotune-sft"
DISTRIBUTIONS = (
    OURS,
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
    """Read the facts of this interpreter's environment, once: they do not change while it runs."""
    versions = {name: found for name in DISTRIBUTIONS if (found := _version(name)) is not None}
    return Installed(
        versions=versions,
        flash_attention_2="flash-attn" in versions and "flash-attn" in _owners("flash_attn"),
        flash_attention_3="flash-attn-3" in versions and "flash-attn-3" in _owners("flash_attn_interface"),
        kernels="kernels" in versions,
        cpp_compiler=any(map(shutil.which, (os.environ["CXX"],) if "CXX" in os.environ else COMPILERS)),
    )


def untested() -> tuple[str, ...]:
    """List the libraries whose version was not tested: `tested with trl 1.16, found 1.17.0`.

    The tested versions are the bounds in pyproject.toml, read from this package's metadata; without it there are none.
    """
    try:
        requirements = [Requirement(text) for text in requires(OURS) or ()]
    except PackageNotFoundError:
        return ()
    found = ((each, _version(each.name)) for each in requirements if each.marker is None)
    return tuple(
        f"tested with {each.name} {_floor(each)}, found {version}"
        for each, version in found
        if version is not None and not each.specifier.contains(version, prereleases=True)
    )


def _floor(requirement: Requirement) -> str:
    return next(bound.version for bound in requirement.specifier if bound.operator == ">=")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _owners(module: str) -> set[str]:
    """Distributions that provide a module. FlashAttention 4 and 2 have modules of the same name."""
    return {name.replace("_", "-") for name in packages_distributions().get(module, ())}
