"""What imports what: one direction, a pure core, and a command line that answers before torch is loaded."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
ORDER = (
    "errors",
    *(f"core.{name}" for name in ("units", "recipe", "outcome", "hardware", "gpu_specs", "workload")),
    *(
        f"core.{name}"
        for name in ("candidate", "batching", "context", "legality", "fidelity", "pins", "shapes", "space")
    ),
    *(f"core.{name}" for name in ("regime", "work", "profile", "batches", "opening", "comparison", "racing", "parity")),
    *(
        f"core.{name}"
        for name in ("budget", "memory", "speed", "published", "timing", "common_steps", "planning", "calibrate")
    ),
    *(f"core.{name}" for name in ("allocator", "replay", "estimate", "levers", "guess", "surrogate", "receipts")),
    *("installed", "nvml", "malloc", "probe_operations", "probe_rates", "probe_process", "probe_cpu", "probe_cuda"),
    "probe",
    *("store", "catalogue", "architectures", "forms", "data", "demo.make", "demo.tiny", "smollm2", "models"),
    *("tokenization", "describe", "task", "random_weights", "sft", "plain_step", "quantized", "kernels"),
    *("attention_operators", "attention_kernels", "work", "contracts", "recorder", "offloading", "assembly", "shallow"),
    *("hub_kernels", "trace", "fork_server", "tracer"),
    *("profiles", "experience", "forecaster", "alternatives", "proposal", "estimate", "forecast"),
    *("measure", "preload", "worker", "trial"),
    *("journal", "standings", "plan", "roofline", "proposals", "losses", "display", "verdict", "repeats", "result"),
    *("search_request", "search", "run"),
    *("rules", "settings", "commands", "usage", "cli"),
)
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, also inside functions; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_order_names_every_module() -> None:
    """A new module has to be given its place."""
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_above_it(module: str) -> None:
    """The data flows in one direction: no module imports one that stands below it, not even inside a function."""
    above = set(ORDER[: ORDER.index(module)])
    named = {name.removeprefix("autotune.") for name in imported(MODULES[module]) if name.startswith("autotune.")}
    assert named & set(ORDER) - above == set()


@pytest.mark.parametrize("module", [module for module in ORDER if module.startswith("core.")])
def test_core_is_pure(module: str) -> None:
    """core/ imports no torch, and nothing that reads files, clocks or the machine."""
    roots = {name.partition(".")[0] for name in imported(MODULES[module])}
    impure = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "hydra", "omegaconf", "optuna"}
    assert roots & (impure | {"os", "io", "pathlib", "time", "subprocess", "psutil", "pynvml"}) == set()


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["probe", "--help"], ["estimate", "--help"], ["search", "-h"], ["run", "--help"], ["--version"]],
)
def test_help_loads_neither_torch_nor_hydra(words: list[str]) -> None:
    """Help and version answer at once: the libraries that take seconds to import are not touched."""
    code = (
        "import json, sys; from autotune.cli import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    output = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout
    text, _, last = output.rstrip("\n").rpartition("\n")
    status, loaded = json.loads(last)
    assert (status, text != "") == (0, True)
    slow = {"torch", "transformers", "trl", "peft", "datasets", "optuna", "numpy", "hydra", "omegaconf", "rich"}
    assert slow & set(loaded) == set()
