"""An estimate from the command line to the answer: traced once for all of these tests, on a llama of one layer."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from autotune.cli.main import main
from autotune.core.gpu_spec import GpuSpec
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.errors import UsageError
from autotune.predict.completion import complete
from autotune.predict.estimate import Estimate, EstimateRequest, estimate, workload_of
from autotune.predict.report import document, summary_lines
from tests.core.examples import CPU, PLAIN, SLOW_IN_BF16, context, workload
from tests.core.time.test_law import MACHINE

CONFIG = LlamaConfig(
    vocab_size=1152,  # of `tiny`, whose tokenizer serves the test with data
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,  # a trace of one layer takes two seconds
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
).to_dict()
GPU = GpuSpec(
    name="a GPU",
    compute_capability="8.0",
    memory_gib=1.0,
    memory_is_reported=True,
    bandwidth_gb_s=1.0,
    sm_count=1,
    sources=("made up",),
    context_mib=0,
    bf16_tflops=1.0,
    tf32_tflops=1.0,
).hardware(cores=2)
FIXED = {"max_length": 128, "checkpointing": "off"}
WORDS = ["hardware=a100_80gb", "candidate.max_length=128", "candidate.checkpointing=off"]


@pytest.fixture
def model(home: Path) -> Path:
    """A directory with nothing but a config.json."""
    directory = home / "only-a-config"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def ask(home: Path, hardware: Hardware = GPU, progress: Any = print, at_hand: bool = False, **changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "model": "mine",
        "config": CONFIG,
        "data": None,
        "columns": {},
        "recipe": Recipe(),
        "fixed": FIXED,
        "loss": "fused",
        "seed": 0,
        "price_per_hour": None,
        "home": home,
    }
    request = EstimateRequest(**{**values, **changes})
    config, workload = workload_of(request, progress=progress)
    return estimate(request, config, workload, hardware, at_hand=at_hand, progress=progress)


def with_memory(count: int) -> Hardware:
    return replace(GPU, memory_bytes=count)


def test_the_answer_for_programs(model: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/interface.md: every key is there, items add up to the peak, and each number holds the one before."""
    assert main(["estimate", f"model={model}", *WORDS, f"home={home}", "format=json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    memory = answer["memory"]
    assert sum(memory["items"].values()) == pytest.approx(memory["peak_allocated_bytes"], abs=len(memory["items"]))
    assert memory["peak_allocated_bytes"] == memory["phases"]["training"] <= memory["peak_reserved_bytes"]
    assert memory["device_bytes"] == (
        memory["peak_reserved_bytes"] + memory["context_bytes"] + memory["workspace_bytes"]
    )
    assert memory["host_peak_bytes"] == sum(memory["host_items"].values())
    assert answer["fits"]
    time = answer["time"]
    assert sum(time["items"].values()) == pytest.approx(time["step_s"])
    assert time["interval_s"][0] < time["step_s"] < time["interval_s"][1]
    assert (time["basis"], time["useful_tokens_per_s"]) == ("published", None)
    assert {"limit_bytes", "candidate", "versions", "largest", "levers", "suggestions"} <= answer.keys()
    assert 0 < memory["fixed_bytes"] < memory["peak_allocated_bytes"]
    assert (answer["candidate"]["per_device_train_batch_size"], answer["batch"]["labels"]) == (8, 8 * 127)


def test_rows_that_the_cut_drops_are_not_estimated(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are said, the steps are those of the rows that are left, and where none is left the data is refused."""
    rows = [{"prompt": "cup of milk " * times, "completion": "240 g."} for times in (1, 1, 1, 40, 40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["estimate", "model=tiny", f"data={data}", "hardware=a100_80gb", f"home={home}", "format=json"]
    words += ["recipe.effective_batch_size=1", "recipe.epochs=2", "candidate.per_device_train_batch_size=1"]
    assert main([*words, "candidate.max_length=32"]) == 0
    said = capsys.readouterr()
    assert "max_length=32 cuts 2 of 5 rows" in said.err
    assert "left out, because no label of them remains: 2 rows" in said.err
    time = json.loads(said.out)["time"]
    assert time["run_s"] == pytest.approx(6 * time["step_s"])
    assert main([*words, "candidate.max_length=2"]) == 2
    assert "candidate.max_length=2: no row of rows.jsonl has a label" in capsys.readouterr().err


def test_a_training_has_a_price(model: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All its steps at what an hour costs; without data or a limit of steps nobody knows how many there are."""
    words = ["estimate", f"model={model}", *WORDS, f"home={home}", "format=json", "price_per_hour=1.5"]
    assert main(words) == main([*words, "recipe.max_steps=200"]) == 0
    open_ended, limited = (json.loads(line)["time"] for line in capsys.readouterr().out.splitlines())
    assert (open_ended["run_s"], open_ended["cost"]) == (None, None)
    assert limited["run_s"] == pytest.approx(200 * limited["step_s"])
    assert limited["cost"] == pytest.approx(1.5 * limited["run_s"] / 3600)


def test_a_sweep_is_one_table(model: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-m: one heading, a row for each combination, in its columns."""
    words = [*WORDS[1:], "hardware=t4,a100_80gb"]
    assert main(["estimate", "-m", f"model={model}", *words, f"home={home}"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert [row[heading.index("hardware") :].split("  ")[0] for row in rows] == ["Tesla T4", "NVIDIA A100-SXM4-80GB"]
    assert {row[heading.index("fits") :].split()[0] for row in rows} == {"yes"}
    assert heading.index("limit") + len("1024 GiB") <= 80  # the verdict is seen in a plain terminal
    assert all(line.isprintable() for line in (heading, *rows))


def test_a_warm_estimate_imports_no_library(model: Path, home: Path) -> None:
    """What is in the cache is answered without torch, transformers, trl or peft."""
    words = ["estimate", f"model={model}", *WORDS, f"home={home}"]
    code = (
        "import sys; from autotune.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, *{'torch', 'transformers', 'trl', 'peft'} & set(sys.modules))"
    )
    main(words)
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].split() == ["0"]


def test_the_largest_that_fits_does_and_the_next_does_not(home: Path) -> None:
    """The micro-batch and the length that are named are at the border."""
    small = with_memory(400 * 2**20)
    found = ask(home, small)
    largest = found.largest_rows.value
    assert largest is not None
    limit = found.memory.room.limit_bytes
    at, beyond = (
        ask(home, small, fixed={**FIXED, "per_device_train_batch_size": rows}).memory
        for rows in (largest, largest * 3 // 2)  # a segment of 20 MiB is many rows here
    )
    assert at.needed_bytes <= limit < beyond.needed_bytes
    assert found.largest_rows.ended_by == "memory"
    assert (found.largest_length.value, found.largest_length.ended_by) == (512, "model_limit")
    assert "largest length at micro-batch 8: 512 (the model's limit)" in summary_lines(found)


@pytest.mark.parametrize(
    ("recipe", "fixed"),
    [(Recipe(), {"optimizer": "adamw_torch"}), (Recipe(method="lora"), {"checkpointing": "full"})],
    ids=["full", "lora"],
)
def test_a_lever_promises_no_more_than_it_keeps(home: Path, recipe: Recipe, fixed: dict[str, Any]) -> None:
    """What a change brings is never less than the bound that is named for it, and less than without it."""
    found = ask(home, recipe=recipe, loss="full_logits", fixed={**FIXED, **fixed})
    assert found.levers  # not of a fused head: its tile is larger than the logits of 1152 tokens
    for lever in found.levers:
        knob, value = lever.words.removeprefix("candidate.").split("=")
        knobs = {**FIXED, **fixed, knob: int(value) if value.isdigit() else value}
        changed = ask(home, recipe=recipe, loss="full_logits", fixed=knobs).memory.peak.bytes
        assert lever.least_bytes <= changed < found.memory.peak.bytes, lever


def test_what_does_not_fit_is_told_what_would(home: Path) -> None:
    """A smaller micro-batch first; where none fits, changes one on top of the other, the last of which may fit."""
    needed = ask(home).memory.needed_bytes
    found = ask(home, with_memory(needed))  # 90 % of it are the limit
    assert not found.memory.fits
    [smaller] = found.suggestions
    assert smaller.memory.fits
    assert smaller.changes["per_device_train_batch_size"] < 8
    hopeless = ask(home, with_memory(2**20), fixed={**FIXED, "checkpointing": "full", "method": "lora"})
    assert hopeless.largest_rows.value is None
    assert not any(each.memory.fits for each in hopeless.suggestions)
    assert [each.changes.get("method") for each in hopeless.suggestions] == ["lora", "qlora"]


def test_samples_that_are_not_those_of_the_recipe_are_remarked(home: Path) -> None:
    """5 rows three times are 15 samples where 16 were asked for; 8 twice are all of them."""
    odd = ask(home, fixed={**FIXED, "per_device_train_batch_size": 5})
    said = "a step has 5 x 3 = 15 samples, not the 16 of recipe.effective_batch_size"
    assert said in summary_lines(odd)
    assert not any("samples" in line for line in summary_lines(ask(home)))


def test_emulated_bf16_is_remarked(home: Path) -> None:
    """A GPU without instructions for it is told of fp16; under fp16 there is nothing to say."""
    old = replace(GPU, supports_bf16=False)
    said = "a GPU has no instructions for bf16, which is emulated; it has them for candidate.mixed_precision=fp16"
    assert said in summary_lines(ask(home, old))
    assert not any("emulated" in line for line in summary_lines(ask(home)))
    pure = ask(home, old, fixed={**FIXED, "mixed_precision": "no", "weights_dtype": "bfloat16"})
    assert said in summary_lines(pure)
    slow = summary_lines(ask(home, replace(CPU, rates=SLOW_IN_BF16)))
    assert "example is slow in bf16; faster: candidate.mixed_precision=no candidate.weights_dtype=float32" in slow
    fp16 = ask(home, old, fixed={**FIXED, "mixed_precision": "fp16"})
    assert not any("emulated" in line for line in summary_lines(fp16))


def test_the_host_must_hold_what_is_offloaded(home: Path) -> None:
    """A byte too little of its memory: it says so, and the largest batch and what would make it fit heed it."""
    offloading = {**FIXED, "activation_offloading": True}
    needed = ask(home, fixed=offloading).memory.host_peak_bytes
    found = ask(home, replace(GPU, host_free_bytes=needed - 1), fixed=offloading)
    assert document(found)["short_of"] == ["host"]
    assert any("but does not fit in the host's memory" in line for line in summary_lines(found))
    assert found.largest_rows.value == 5  # pinned blocks of 6 and of 7 rows are as large as those of 8
    [smaller] = found.suggestions
    assert smaller.memory.fits
    hopeless = ask(home, replace(GPU, host_free_bytes=2**20), fixed=offloading)
    assert hopeless.largest_rows.value is hopeless.largest_length.value is None
    assert hopeless.suggestions[0].changes == {"per_device_train_batch_size": 1, "activation_offloading": False}
    assert any("of the host's memory, does not fit" in line for line in summary_lines(hopeless))


def test_a_cpu_has_no_allocator_of_its_own(home: Path) -> None:
    """There reserved is allocated, nothing is added, and the host must hold it."""
    found = ask(home, replace(CPU, host_free_bytes=2**20))
    demand = found.memory.demand
    assert demand.reserved_bytes == demand.peak.bytes == found.memory.device_bytes
    assert demand.host_items["tensors"] == demand.peak.bytes
    assert not found.memory.fits


def test_a_cpu_takes_the_time_that_its_probe_tells(home: Path) -> None:
    """With all of its cores; how fast fewer are nobody measured."""
    found = ask(home, MACHINE).time
    assert found is not None
    assert found.measured
    assert sum(found.estimate.items.values()) == pytest.approx(found.estimate.step_s)
    assert ask(home, MACHINE, fixed={**FIXED, "torch_threads": 1}).time is None
    assert ask(home, CPU).time is None


def test_fewer_rows_than_a_step_are_told_in_the_recipe_s_words(home: Path) -> None:
    """Not in those of knobs that nobody set."""
    with pytest.raises(UsageError) as refused:
        ask(home, model="tiny", data="demo", recipe=Recipe(effective_batch_size=500))
    [told] = refused.value.problems
    assert ask(home, recipe=Recipe(effective_batch_size=70_000)).data is None  # stand-in rows are nobody's data
    assert told.startswith("recipe.effective_batch_size=500: the data has 400 rows, fewer than one optimizer step")


def test_data_decides_the_worst_batch(home: Path) -> None:
    """With a dataset the longest rows count; `tiny` has the tokenizer."""
    found = ask(home, model="tiny", data="demo", fixed={"checkpointing": "off"})
    assert found.data is not None
    assert found.batch.rows == 8
    assert 200 < found.batch.positions <= found.candidate.max_length
    assert found.batch.labels < found.batch.rows * (found.batch.positions - 1)


@pytest.mark.parametrize(
    ("config", "fixed", "said"),
    [
        ({**CONFIG, "model_type": "lama"}, {}, ["model_type 'lama' is unknown"]),
        ({**CONFIG, "model_type": "lama", "auto_map": {}}, {}, ["needs code of its own"]),
        ({key: value for key, value in CONFIG.items() if key != "model_type"}, {}, ["has no model_type"]),
        ({**CONFIG, "hidden_size": "wide"}, {}, ["no causal language model"]),
        ({**CONFIG, "hidden_size": -3}, {}, ["hidden size (-3)"]),
        ({**CONFIG, "num_hidden_layers": 0}, {}, ["num_hidden_layers is 0, expected at least 1"]),
        (
            {**CONFIG, "architectures": "BertForMaskedLM"},
            {},
            ["is an encoder, which fills in words and does not go on (BertForMaskedLM)"],
        ),
        ({**CONFIG, "quantization_config": "gptq"}, {}, ["its weights are numbers quantized by an unnamed method"]),
        (
            CONFIG,
            {"max_length": 5000, "tf32": True},
            ["longer than the positions that the model was made for (512)", "tf32"],
        ),
        (
            CONFIG,
            {"batching": "pack_bfd", "packed_length": 5000},
            ["candidate.packed_length=5000: samples or"],
        ),
        (CONFIG, {"every_n_layers": 3, "optimizer": "adafactor", "devices": 2}, ["several devices", "every_n_layers"]),
    ],
)
def test_one_message_lists_all_that_is_wrong(
    home: Path, config: dict[str, Any], fixed: dict[str, Any], said: list[str]
) -> None:
    """An unknown type, remote code, a broken configuration, a length beyond the limit, impossible knobs."""
    with pytest.raises(UsageError) as refused:
        ask(home, config=config, fixed=fixed)
    assert len(refused.value.problems) == len(said)
    assert all(word in problem for word, problem in zip(said, sorted(refused.value.problems), strict=True)), refused


def test_a_packed_step_has_the_samples_that_were_asked_for() -> None:
    """Rows of 1000 positions hold ten of a hundred tokens each: two rows are twenty samples, not twenty rows."""
    found = complete(
        {"batching": "pack_bfd", "packed_length": 1000, "per_device_train_batch_size": 1},
        context(CPU, PLAIN, workload([100] * 400, effective_batch_size=20)),
        lengths_known=True,
    )
    assert found.gradient_accumulation_steps == 2


def test_a_damaged_answer_is_found_again(home: Path) -> None:
    """Whatever of the cache is damaged is made anew with the same result."""
    first = ask(home)
    for path in (home / "profiles").rglob("*.json"):
        path.write_text(path.read_text()[:100])
    said: list[str] = []
    assert ask(home, progress=said.append).memory == first.memory
    assert sum("made anew" in line for line in said) >= 3


def test_search_refuses_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The catalogue is for planning: what trains, trains here."""
    assert main(["search", "model=tiny", "data=demo", "hardware=t4"]) == 2
    assert "train on the machine at hand" in capsys.readouterr().err
