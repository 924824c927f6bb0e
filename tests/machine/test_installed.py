"""Facts of the installed stack: those of this environment, and a module that two packages share."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from autotune.machine import installed as module
from autotune.machine.installed import installed, untested


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Read anew in each test: the facts are kept for a process."""
    installed.cache_clear()


def test_versions_are_those_of_the_environment() -> None:
    """What pip says is installed, and nothing that is not."""
    facts = installed()
    for name in ("torch", "transformers", "trl", "peft", "bitsandbytes"):
        assert facts.versions[name] == version(name)
    assert ("kernels" in facts.versions) == facts.kernels


def test_flash_attention_four_is_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages provide the module flash_attn; transformers asks which of them does, and so do we."""
    monkeypatch.setattr(module, "_version", lambda distribution: "1.0")
    monkeypatch.setattr(module, "packages_distributions", lambda: {"flash_attn": ["flash_attn_4"]})
    assert not installed().flash_attention_2
    installed.cache_clear()
    monkeypatch.setattr(
        module,
        "packages_distributions",
        lambda: {"flash_attn": ["flash_attn"], "flash_attn_interface": ["flash_attn_3"]},
    )
    assert installed().flash_attention_2


def test_a_compiler_is_looked_for_where_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX if it is set, else g++ or clang++ on the path."""
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert not installed().cpp_compiler
    installed.cache_clear()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not installed().cpp_compiler


@pytest.mark.parametrize(
    ("installed_version", "lines"),
    [
        ("5.23.0", ()),
        ("5.23.4+local", ()),
        ("5.22.9", ("tested with transformers 5.23, found 5.22.9",)),
        ("5.24.0", ("tested with transformers 5.23, found 5.24.0",)),
        ("5.24.0.dev0", ("tested with transformers 5.23, found 5.24.0.dev0",)),
        (None, ()),
    ],
)
def test_a_version_that_was_not_tested_is_named(
    monkeypatch: pytest.MonkeyPatch, installed_version: str | None, lines: tuple[str, ...]
) -> None:
    """Below the floor, and from the next minor version on; extras, and libraries without an upper bound, are free."""
    bounds = ["transformers<5.24,>=5.23", "numpy>=2.4", "scipy>=1.17; extra == 'gp'"]
    versions = {"transformers": installed_version, "numpy": "3.0", "scipy": "1.0"}
    monkeypatch.setattr(module, "requires", lambda distribution: bounds)
    monkeypatch.setattr(module, "_version", versions.get)
    assert untested() == lines


def test_the_bounds_hold_what_is_installed_here() -> None:
    """pyproject.toml, constraints.txt and this environment agree, and a bound is the minor version after the tested."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {canonicalize_name(name): exact for name, exact in pinned.items()}
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
        assert requirement.specifier.contains(version(requirement.name))
        bounds = {bound.operator: Version(bound.version) for bound in requirement.specifier}
        if "<" in bounds:
            assert bounds["<"].release == (bounds[">="].major, bounds[">="].minor + 1)


def test_nothing_heavy_is_imported() -> None:
    """`autotune --help` and the planning commands must not pay for torch."""
    code = (
        "import json, sys; from autotune.machine.installed import installed\n"
        "installed(); print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets"} & set(loaded)
