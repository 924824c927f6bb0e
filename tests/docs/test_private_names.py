"""docs/private-names.md: it names what the code uses, the libraries have it, and each row's test exists."""

import ast
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "private-names.md"
DOCUMENTED = {"_exit"}  # of os: private in form alone


class Row(NamedTuple):
    """A row of the table. modules: of autotune, that use the name. test: `file::function` that notices a change."""

    name: str
    modules: frozenset[str]
    test: str


def rows() -> list[Row]:
    """The rows of the table on the page."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[0]:
            found.append(Row(cells[0][0], frozenset(cells[1]), cells[3][0]))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def used(tree: ast.Module) -> Iterator[str]:
    """The names that a module uses of other libraries and that are private or replaced.

    An imported name is dotted, of any other the last part is told. A private method that nothing in the module calls
    overrides the library's; a private attribute of `self` that the module defines is its own.
    """
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and is_private(node.attr)]
    inner = {node.value for node in attributes}
    of_self = {node for node in attributes if ast.unparse(node.value) in ("self", "cls")}
    methods = {
        method.name
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and is_private(method.name)
    }
    fields = {node.attr for node in of_self if isinstance(node.ctx, ast.Store)}
    fields |= {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    yield from methods - {node.attr for node in attributes}
    yield from {node.attr for node in of_self} - methods - fields
    yield from {node.attr for node in attributes if node not in of_self | inner} - fields - DOCUMENTED
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("autotune"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "patch.object":
            yield ast.literal_eval(node.args[1])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "patch.dict":
            yield ast.unparse(node.args[0]).rpartition(".")[2]


def uses() -> dict[str, frozenset[str]]:
    """Each private name that autotune uses, with the modules that do."""
    found = defaultdict(set)
    for path in (ROOT / "autotune").rglob("*.py"):
        for name in used(ast.parse(path.read_text(encoding="utf-8"))):
            found[name].add(str(path.relative_to(ROOT)))
    return {name: frozenset(modules) for name, modules in found.items()}


ROWS = rows()


def test_the_table_names_what_the_code_uses() -> None:
    """No private name without a row, and no row whose name is gone; each with the modules that use it."""
    found = uses()
    told: dict[str, frozenset[str]] = {}
    for row in ROWS:
        key = row.name if row.name in found else row.name.rpartition(".")[2]
        told[key] = told.get(key, frozenset()) | row.modules
    assert told == found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_test_of_a_row_is_there(row: Row) -> None:
    """Whoever changes a library's version knows what to run."""
    file, _, name = row.test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def found_in(path: str) -> Any:
    """What a dotted path names. Raises AttributeError when a library has lost it."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ImportError(path)


def of_an_instance(row: Row) -> Any:
    """A name that instances have, and their class has not."""
    owner, _, name = row.name.rpartition(".")
    cls = found_in(owner)
    makers: dict[str, Callable[[], Any]] = {
        "concurrent.futures.ProcessPoolExecutor": lambda: ProcessPoolExecutor(1),
        "datasets.Dataset": lambda: cls.from_dict({"a": [1]}),
        "optuna.study.Study": lambda: importlib.import_module("optuna").create_study(),
        "torch._ops.OpOverload": lambda: importlib.import_module("torch").ops.aten.add.Tensor,
        "torch.nn.Module": cls,
        "transformers.PreTrainedConfig": cls,
    }
    return getattr(makers[owner](), name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_libraries_have_the_name(row: Row) -> None:
    """The installed versions, whether or not a test of behaviour uses it."""
    if row.name == "trl.kernels.chunked_logprob.triton":  # a module that is there only beside Triton
        assert "import triton\n" in inspect.getsource(found_in("trl.kernels.chunked_logprob"))
        return
    try:
        found_in(row.name)
    except AttributeError:
        of_an_instance(row)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hydra._internal.utils.get_args_parser", ""),
        ("transformers.Trainer._get_train_sampler", "self train_dataset"),
        ("transformers.Trainer._load_from_checkpoint", "self resume_from_checkpoint model"),
        ("transformers.Trainer._clip_grad_norm", "self model"),
        ("transformers.PreTrainedModel._flash_attn_can_dispatch", "self flash_attn_version is_init_check"),
        (
            "transformers.modeling_utils.lazy_import_flash_attention",
            "implementation attention_wrapper allow_all_kernels",
        ),
        ("transformers.masking_utils.is_tracing", "tensor"),
        ("trl.SFTTrainer._prepare_dataset", "self dataset processing_class args packing formatting_func dataset_name"),
        ("trl.kernels.chunked_logprob._use_triton", "device"),
        ("trl.kernels.chunked_logprob._addmm_fp32", "acc a b"),
        (
            "bitsandbytes.backends.default.ops._gemm_4bit_default_impl",
            "A B shapeB absmax blocksize quant_type bias absmax_8bit absmax_code absmax_offset",
        ),
        ("bitsandbytes.optim.optimizer.Optimizer8bit.get_state_buffer", "self p dtype"),
        ("bitsandbytes.functional.prefetch_tensor", "A to_cpu"),
        ("optuna.samplers.BaseSampler._raise_error_if_multi_objective", "self study"),
        ("torch.nn.Module._apply", "self fn recurse"),
        ("torch.autograd._engine_run_backward", "t_outputs args kwargs"),
        ("torch.optim.optimizer._get_foreach_kernels_supported_devices", ""),
        ("torch._subclasses.fake_tensor.in_kernel_invocation_manager", "fake_mode"),
    ],
)
def test_its_parameters_are_those_that_are_relied_on(name: str, parameters: str) -> None:
    """Of functions that are called, overridden or replaced."""
    assert list(inspect.signature(found_in(name)).parameters) == parameters.split()
