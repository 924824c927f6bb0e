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
# Folders from first to last, and inside each its modules: whoever imports stands below.
ORDER = tuple(
    f"{folder}.{name}".removeprefix(".")
    for folder, names in {
        "": "errors formats environment files cache child",
        "core": "units arithmetic decode recipe knobs candidate outcome hardware gpu_spec lengths workload",
        "core.step": "work regime profile deepening",
        "core.batches": "packing trained batches",
        "core.space": "context legality fidelity fixed step_shapes references enumerate opening",
        "core.memory": "law allocator replay estimate levers calibration",
        "core.time": "speed measured published law common_steps many_candidates calibration guess",
        "core.trials": "comparison racing parity budget surrogate receipts trial standings reserve verdict",
        "machine": "installed nvml malloc operations rates process host disturbance gpus probe",
        "demo": "make tiny",
        "models": "catalogue other_kinds target_modules positions untrainable architectures smollm2 checkpoint "
        "text_backbone find savable",
        "data": "forms marks rows splits source endings tokenization describe",
        "train": "task random_weights sft saving measure preload fork_server worker workers display run",
        "trace": "plain_step quantized kernels attention_operators attention_kernels operators contracts recorder "
        "offloading assembly shallow hub_kernels request fake_training trace tracer profiles",
        "predict": "training micro_batches laws memory alternatives experience time step_seconds completion estimate "
        "report",
        "search": "samplers journal predicted_rates predicted_memory predictions request roofline proposer display "
        "introduction bench explore repeats losses result findings run_file run_directory summary search",
        "cli": "limits settings requests keys help schema judge usage run_file commands streams exits application main",
    }.items()
    for name in names.split()
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
        "import json, sys; from autotune.cli.main import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    output = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout
    text, _, last = output.rstrip("\n").rpartition("\n")
    status, loaded = json.loads(last)
    assert (status, text != "") == (0, True)
    slow = {"torch", "transformers", "trl", "peft", "datasets", "optuna", "numpy", "hydra", "omegaconf", "rich"}
    assert slow & set(loaded) == set()
