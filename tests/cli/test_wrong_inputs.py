"""Wrong inputs, as people give them: each ends with exit code 2 and words, before a probe, and nothing is written.

A row of CASES is a command line, and what its message must name. FILES are the files beside it.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.main import main
from autotune.core.workload import Workload

RUN = """\
model: tiny
data: demo
recipe: {effective_batch_size: 4, max_steps: 2}
candidate: {max_length: 128, per_device_train_batch_size: 4, gradient_accumulation_steps: 1, method: full}
"""
ROWS = "".join(json.dumps({"text": f"row {number} has some words"}) + "\n" for number in range(24))
FILES: dict[str, str | bytes] = {
    "rows.jsonl": ROWS,
    "empty.jsonl": "",
    "broken.jsonl": '{"text": "a"}\n{"text": \n',
    "array.json": '[{"text": "a"}, 3]',
    "broken.json": '{"data": [',
    "latin.jsonl": '{"text": "café"}\n'.encode("latin-1") * 24,
    "utf16.jsonl": ROWS.encode("utf-16"),
    "formless.jsonl": '{"body": "x"}\n' * 24,
    "nulls.jsonl": '{"text": null}\n' * 24,
    "messages.jsonl": '{"messages": "hello"}\n' * 24,
    "dpo.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 24,
    "header.csv": "text\n",
    "torn.parquet": b"PAR1xxxx",
    "rows.xlsx": b"PK\x03\x04",
    "no-data/notes.md": "x",
    "not-a-model/readme.md": "x",
    "bad-config/config.json": "{",
    "no-type/config.json": '{"hidden_size": 3}',
    "encoder/config.json": '{"model_type": "bert", "architectures": ["BertModel"]}',
    "adapter/adapter_config.json": '{"base_model_name_or_path": "owner/base"}',
    "probe.json": "{}",
    "broken-probe.json": "{",
    "run.yaml": RUN,
    "tabs.yaml": "model: tiny\n\tdata: demo\n",
    "list.yaml": "- a\n- b\n",
    "unclosed.yaml": "model: {path: tiny\n",
    "unknown.yaml": RUN + "sede: 3\n",
    "nested.yaml": RUN.replace("max_steps", "maxsteps"),
    "twice.yaml": RUN + "model: other\n",
    "missing.yaml": RUN.replace("max_length: 128, ", ""),
    "newer.yaml": "format: 9\n" + RUN,
    "format.yaml": "format: json\n" + RUN,
    "negative.yaml": RUN.replace("128", "-1"),
    "nan.yaml": RUN.replace("max_steps: 2", "learning_rate: .nan"),
    "candidates.yaml": RUN.replace("candidate: {", "candidate: [{").replace("full}", "full}]"),
    "hardware.yaml": RUN + "hardware: t4\n",
    "unset.yaml": RUN.replace("tiny", "${oc.env:NOT_SET_ANYWHERE}"),
    "python.yaml": RUN + "seed: !!python/object/apply:os.getpid []\n",
    "binary.yaml": b"\xff\xfe\x00\x01",
    "long.yaml": RUN.replace("128", "99999"),
    "other-batch.yaml": RUN.replace("effective_batch_size: 4", "effective_batch_size: 16"),
    "empty-run/notes.md": "x",
    "runs/foreign/trials/0000/notes.md": "x",
    "runs/other/search.json": '{"model": "x"}',
    "runs/torn/search.json": "{",
    "runs/other-run/task.json": '{"model": "x"}',
    "runs/torn-run/task.json": "[]",
    "file": "x",
}

SEARCH = "search model=tiny data=demo "
ESTIMATE = "estimate model=tiny hardware=t4 "
CASES: list[tuple[str | list[str], str]] = [
    # words that are no command, no flag or no key
    ("serach", "serach"),
    ("train model=tiny", "train"),
    ("help", "help"),
    ("probe all", "all"),
    ("search tiny demo", "tiny"),
    ("search --model tiny", "--model"),
    ("search --cfg jbo", "jbo"),
    ("search --resolve", "--resolve"),
    (SEARCH + "--config-dir nowhere", "nowhere"),
    (SEARCH + "--config-name nowhere", "nowhere"),
    (SEARCH + "budget.minute=5", "budget.minutes"),
    (SEARCH + "batch_size=4", "batch_size"),
    (SEARCH + "recipe.epochs.x=3", "recipe.epochs.x"),
    (SEARCH + "candidate.gradient_checkpointing=true", "candidate.gradient_checkpointing"),
    (SEARCH + "model.config.hidden_size=3", "model.config"),
    ("probe model=tiny", "model"),
    ("estimate model=tiny budget=short", "budget"),
    ("run run.yaml fidelity=free", "fidelity"),
    ("run run.yaml experiment=demo", "experiment"),
    ("run run.yaml model.config.hidden_size=3", "model.config"),
    # what is missing
    ("search", "model="),
    ("search model=tiny", "data="),
    ("search data=demo", "model="),
    ("search model=null data=demo", "model="),
    ("estimate hardware=t4", "model="),
    ("run", "FILE"),
    (SEARCH + "budget.minutes=null", "budget.minutes"),
    (SEARCH + "recipe.epochs", "recipe.epochs"),
    (SEARCH + "=3", "=3"),
    # numbers
    (SEARCH + "recipe.epochs=three", "recipe.epochs=three"),
    (SEARCH + "recipe.epochs=nan", "recipe.epochs=nan"),
    (SEARCH + "recipe.epochs=inf", "recipe.epochs=inf"),
    (SEARCH + "recipe.max_steps=2.5", "recipe.max_steps=2.5"),
    (SEARCH + "recipe.learning_rate=", "recipe.learning_rate="),
    (SEARCH + "recipe.learning_rate=-1e-4", "recipe.learning_rate=-0.0001"),
    (SEARCH + "recipe.warmup_ratio=10%", "recipe.warmup_ratio=10%"),
    (SEARCH + "recipe.coverage=95", "recipe.coverage=95"),
    (SEARCH + "recipe.effective_batch_size=16GB", "recipe.effective_batch_size=16GB"),
    (SEARCH + "recipe.effective_batch_size=null", "recipe.effective_batch_size=null"),
    (SEARCH + "recipe.lora_rank=true", "recipe.lora_rank=true"),
    (SEARCH + "recipe.lora_rank=[8,16]", "recipe.lora_rank"),
    (SEARCH + "budget.minutes=30m", "budget.minutes=30m"),
    (SEARCH + "budget.trials=1", "budget.trials=1"),
    (SEARCH + "seed=5000000000", "seed=5000000000"),
    (SEARCH + "candidate.max_length=4k", "candidate.max_length=4k"),
    (SEARCH + "candidate.per_device_train_batch_size=auto", "candidate.per_device_train_batch_size=auto"),
    (ESTIMATE + "price_per_hour=$2", "price_per_hour=$2"),
    ("run run.yaml recipe.lora_rank=-2", "recipe.lora_rank=-2"),
    ("run run.yaml candidate.max_length=null", "candidate.max_length"),
    # words that are no choice
    (SEARCH + "recipe.method=dora", "dora"),
    (SEARCH + "recipe.method=LoRA", "LoRA"),
    (SEARCH + "recipe.assistant_only_loss=maybe", "maybe"),
    (SEARCH + "candidate.attention=flash", "flash"),
    (SEARCH + "candidate.weights_dtype=bf16", "bfloat16"),
    (SEARCH + "candidate.checkpointing=true", "candidate.checkpointing=true"),
    (SEARCH + "fidelity=strict", "strict"),
    (SEARCH + "budget=5", "budget=5"),
    ("probe format=JSON", "JSON"),
    ("probe refresh=sometimes", "sometimes"),
    (ESTIMATE + "loss=chunked", "chunked"),
    ("run run.yaml device=tpu", "device=tpu"),
    ("run run.yaml recipe=defualt", "defualt"),
    # what Hydra's grammar has for other purposes
    ([*SEARCH.split(), "recipe.epochs='3"], "recipe.epochs"),
    ([*SEARCH.split(), "recipe.method=full lora"], "full lora"),
    (SEARCH + "recipe.epochs = 3", "="),
    (SEARCH + "recipe.lora_target_modules=[q_proj", "recipe.lora_target_modules"),
    (SEARCH + "+recipe.epohcs=3", "recipe.epochs"),
    (SEARCH + "~recipe.epochs", "recipe.epochs"),
    (SEARCH + "~model", "model="),
    (SEARCH + "recipe.method=full,lora", "-m"),
    (SEARCH + "recipe.epochs='${nothing}'", "nothing"),
    (SEARCH + "recipe.epochs='${oc.env:NOT_SET_ANYWHERE}'", "NOT_SET_ANYWHERE"),
    (SEARCH + "out=[a,b]", "out"),
    ("search -m model=tiny data=demo seed=1,x", "seed=x"),
    ("estimate model=tiny hardware=t4,a10", "-m"),
    # models
    ("search model=nowhere data=demo", "nowhere"),
    ("search model=~/nowhere data=demo", "nowhere"),
    ("search model=rows.jsonl data=demo", "rows.jsonl"),
    ("search model=not-a-model data=demo", "not-a-model"),
    ("search model=bad-config data=demo", "bad-config"),
    ("search model=encoder data=demo", "encoder"),
    ("search model=adapter data=demo", "owner/base"),
    ("search model=owner/name data=demo", "owner/name"),
    ("search model=https://huggingface.co/Qwen/Qwen3-8B data=demo", "huggingface.co"),
    ("estimate model=llama3 hardware=t4", "llama3"),
    ("estimate model=no-type hardware=t4", "no-type"),
    ("estimate model.path=x hardware=t4 model.config={model_type:llama9000}", "llama9000"),
    ("estimate model.path=x hardware=t4 model.config={hidden_size:64}", "model_type"),
    (ESTIMATE + "model.config=3", "model.config"),
    ("run run.yaml model=nowhere", "nowhere"),
    # data
    ("search model=tiny data=nowhere.jsonl", "nowhere.jsonl"),
    ("search model=tiny data=owner/name", "owner/name"),
    ("search model=tiny data=https://example.com/rows.jsonl", "example.com"),
    ("search model=tiny data=empty.jsonl", "empty.jsonl"),
    ("search model=tiny data=broken.jsonl", "broken.jsonl:2"),
    ("search model=tiny data=array.json", "array.json"),
    ("search model=tiny data=broken.json", "broken.json"),
    ("search model=tiny data=latin.jsonl", "latin.jsonl"),
    ("search model=tiny data=utf16.jsonl", "utf16.jsonl"),
    ("search model=tiny data=formless.jsonl", "formless.jsonl"),
    ("search model=tiny data=nulls.jsonl", "nulls.jsonl"),
    ("search model=tiny data=messages.jsonl", "messages.jsonl"),
    ("search model=tiny data=dpo.jsonl", "chosen"),
    ("search model=tiny data=header.csv", "header.csv"),
    ("search model=tiny data=torn.parquet", "torn.parquet"),
    ("search model=tiny data=rows.xlsx", "rows.xlsx"),
    ("search model=tiny data=no-data", "no-data"),
    ("search model=tiny data=rows.jsonl data.columns={txt:text}", "txt"),
    ("search model=tiny data=rows.jsonl data.columns={text:body}", "body"),
    (ESTIMATE + "data=formless.jsonl", "formless.jsonl"),
    ("run run.yaml data=broken.jsonl", "broken.jsonl:2"),
    # machines
    ("estimate model=tiny hardware=a100", "a100_40gb"),
    ("estimate model=tiny hardware=tpu", "tpu"),
    ("estimate model=tiny hardware=nowhere.json", "nowhere.json"),
    ("estimate model=tiny hardware=probe.json", "probe.json"),
    ("estimate model=tiny hardware=broken-probe.json", "broken-probe.json"),
    ("estimate model=tiny hardware.gpu={name:x}", "hardware.gpu"),
    ("estimate model=tiny hardware.device=cuda", "hardware.device=cuda"),
    (SEARCH + "hardware=t4", "T4"),
    ("run run.yaml hardware=probe.json", "probe.json"),
    ("run run.yaml hardware=cpu device=cuda", "device=cuda"),
    # settings that contradict each other, the model, or the machine
    (SEARCH + "recipe.effective_batch_size=100000", "rows"),
    (SEARCH + "recipe.method=lora candidate.method=full", "candidate.method"),
    (SEARCH + "recipe.method=lora recipe.lora_target_modules=[q_porj]", "q_porj"),
    (SEARCH + "recipe.lora_target_modules=[]", "recipe.lora_target_modules"),
    (SEARCH + "recipe.lora_target_modules=[q_proj,'']", "recipe.lora_target_modules"),
    (SEARCH + "candidate.max_length=99999", "candidate.max_length=99999"),
    (SEARCH + "candidate.per_device_train_batch_size=3", "candidate.per_device_train_batch_size"),
    (
        SEARCH + "candidate.per_device_train_batch_size=8 candidate.gradient_accumulation_steps=4",
        "candidate.gradient_accumulation_steps",
    ),
    (SEARCH + "candidate.batching=random candidate.packed_length=512", "packed_length"),
    (SEARCH + "candidate.checkpointing=full candidate.every_n_layers=2", "every_n_layers"),
    (SEARCH + "hardware=cpu candidate.mixed_precision=fp16", "fp16"),
    (ESTIMATE + "candidate.attention=flash_attention_2", "flash_attention_2"),
    ("run long.yaml", "candidate.max_length=99999"),
    ("run other-batch.yaml", "recipe.effective_batch_size=16"),
    ("run run.yaml recipe.effective_batch_size=7", "recipe.effective_batch_size=7"),
    ("run run.yaml recipe.method=full candidate.method=lora", "candidate.method"),
    ("run run.yaml candidate.method=lora recipe.lora_target_modules=[q_porj]", "q_porj"),
    ("run run.yaml candidate.devices=4", "candidate.devices=4"),
    ("run run.yaml candidate.batching=padding_free", "padding_free"),
    ("run run.yaml hardware=cpu candidate.tf32=true", "tf32"),
    # run files
    ("run nowhere.yaml", "nowhere.yaml"),
    ("run empty-run", "empty-run/run.yaml"),
    ("run tabs.yaml", "tabs.yaml"),
    ("run list.yaml", "list.yaml"),
    ("run unclosed.yaml", "unclosed.yaml"),
    ("run unknown.yaml", "sede"),
    ("run nested.yaml", "recipe.max_steps"),
    ("run twice.yaml", "twice.yaml"),
    ("run missing.yaml", "candidate.max_length"),
    ("run newer.yaml", "format=9"),
    ("run format.yaml", "format=json"),
    ("run negative.yaml", "candidate.max_length=-1"),
    ("run nan.yaml", "recipe.learning_rate=nan"),
    ("run candidates.yaml", "candidate="),
    ("run hardware.yaml", "hardware=t4"),
    ("run unset.yaml", "NOT_SET_ANYWHERE"),
    ("run python.yaml", "python.yaml"),
    ("run binary.yaml", "binary.yaml"),
    ("run rows.jsonl", "rows.jsonl"),
    # places
    ("probe home=file", "file"),
    ("estimate model=tiny hardware=t4 home=file/deep", "file"),
    ("run run.yaml home=/proc/nowhere", "/proc/nowhere"),
    (SEARCH + "out=file", "out=file"),
    (SEARCH + "out=/proc/nowhere", "out=/proc/nowhere"),
    (SEARCH + "out=runs/foreign", "out=runs/foreign"),
    (SEARCH + "out=runs/other", "out=runs/other"),
    (SEARCH + "out=runs/torn", "runs/torn/search.json"),
    ("run run.yaml out=file/deep", "out=file/deep"),
    ("run run.yaml out=runs/other-run", "out=runs/other-run"),
    ("run run.yaml out=runs/torn-run", "runs/torn-run/task.json"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> tuple[Path, Path]:
    """A directory with FILES, and a cache with the tiny model and the tokenized demo data."""
    directory, home = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("home")
    for whole in (Path(workload.model.path), Path(workload.data.tokenized_path).parent):
        shutil.copytree(whole, home / whole.parent.name / whole.name)
    for name, content in FILES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory, home


@pytest.fixture(scope="module")
def warm(places: tuple[Path, Path]) -> None:
    """Let right words be read and judged, up to the probe, so that the cache has all that this leaves there."""
    directory, home = places
    with pytest.MonkeyPatch.context() as patch:
        surround(patch, directory, home)
        patch.setattr("autotune.machine.probe.probe", refuse)
        for words in (SEARCH, "estimate model=tiny", "run run.yaml"):
            assert main(words.split()) == 1


@pytest.fixture
def listed(places: tuple[Path, Path], warm: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in the directory, without a network, and see afterwards that no file came or went."""
    surround(monkeypatch, *places)
    monkeypatch.setattr("autotune.machine.probe.measure_in_process", refuse)
    before = listing(places)
    yield
    assert listing(places) == before


def surround(patch: pytest.MonkeyPatch, directory: Path, home: Path) -> None:
    patch.chdir(directory)
    patch.setattr("logging.raiseExceptions", False)  # --info, in another test, leaves a handler with a closed stream
    patch.setenv("AUTOTUNE_HOME", str(home))
    patch.setenv("HOME", str(home))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def listing(places: tuple[Path, Path]) -> list[str]:
    return sorted(str(path) for place in places for path in place.rglob("*"))


def refuse(*arguments: Any, **keywords: Any) -> None:
    raise RuntimeError("probed")


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(("words", "named"), CASES, ids=[str(words) for words, _ in CASES])
def test_a_wrong_input_ends_in_words(words: str | list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, nothing on stdout, a message that names what is wrong, no stack, no probe, no file."""
    code = main(shlex.split(words) if isinstance(words, str) else words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert named in err
    assert "Traceback" not in err
    assert "probed" not in err


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("words", ["probe home=file", SEARCH + "epochs=3", "run tabs.yaml"])
def test_a_wrong_input_of_a_process(words: str) -> None:
    """The exit code is the shell's; stderr has words and no stack."""
    done = subprocess.run([sys.executable, "-m", "autotune", *words.split()], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("autotune: ")
    assert "Traceback" not in done.stderr
