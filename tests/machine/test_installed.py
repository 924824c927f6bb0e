"""Facts of the installed stack: those of this environment, and a module that two packages share."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from autotune.machine import installed as module
from autotune.machine.installed import installed


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


def test_nothing_heavy_is_imported() -> None:
    """`autotune --help` and the planning commands must not pay for torch."""
    code = (
        "import json, sys; from autotune.machine.installed import installed\n"
        "installed(); print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets"} & set(loaded)
