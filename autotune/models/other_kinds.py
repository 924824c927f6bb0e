"""What people name as a model that cannot be trained here, in a sentence for each kind.

The kinds are told apart by the names of files and by config.json alone. Leaves out what only the class of a model tells
(untrainable.py), and whether its weights are whole (checkpoint.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# By `quant_method` of config.json: how the weights are kept, and what to name instead.
QUANTIZED: Mapping[str, str] = {
    "gptq": "4-bit integers of GPTQ, made for inference",
    "awq": "4-bit integers of AWQ, made for inference",
    "bitsandbytes": "bitsandbytes' own {bits} numbers, already quantized",
    "fp8": "8-bit floating-point numbers, made for inference",
    "fbgemm_fp8": "8-bit floating-point numbers, made for inference",
    "compressed-tensors": "compressed tensors, made for inference",
    "mxfp4": "4-bit floating-point numbers (mxfp4)",
    "gguf": "numbers of GGUF, made for inference",
}
QLORA = "name the model that it was made from; recipe.method=qlora quantizes that one by itself"
DEQUANTIZE = "save it in bf16 first (`from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True))`)"

# Files that tell what a directory is, where it has no weights or no configuration of a model of transformers.
FILES: Mapping[str, str] = {
    "model_index.json": "is a pipeline of diffusers, which makes images; expected a causal language model",
    "modules.json": "is a model of sentence-transformers, which makes embeddings; expected a causal language model",
    "*.gguf": "holds weights for llama.cpp (GGUF), made for inference; name the model that they were made from",
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed in pieces; `python zero_to_fp32.py . OUT --safe_serialization` "
    "joins them",
    "*.distcp": "is a distributed checkpoint in pieces; `accelerate merge-weights` joins them",
    "consolidated*": "holds weights in the form of the model's makers; name the version for transformers",
    "params.json": "holds weights in the form of the model's makers; name the version for transformers",
    "*.nemo": "is a model of NeMo; name the version for transformers",
    "trainer_state.json": "is a checkpoint of a training without the model's weights",
}

# By the end of the name of a class.
CLASSES: Mapping[str, str] = {
    r"For(Sequence|Token|Image|Audio)Classification|ForMultipleChoice": "a classifier, whose head gives classes and "
    "not tokens",
    r"ForQuestionAnswering": "a model that marks answers in a text, and writes none",
    r"(Reward|ForReward|ForProcessReward)Model|ForScore": "a reward model, whose head gives scores and not tokens",
    r"ForMaskedLM|ForPreTraining|ForNextSentencePrediction": "an encoder, which fills in words and does not go on",
    r"ForConditionalGeneration|ForSpeechSeq2Seq|ForSeq2SeqLM": "an encoder-decoder, which reads one text and writes "
    "another",
    r"(?<!LMHead)(?<!DoubleHeads)Model": "a model without a head that gives tokens, such as one for embeddings",
}


def of_quantization(quantization: Any) -> str:
    """Say how the weights of a quantized checkpoint are kept, and what to do. quantization: of config.json."""
    values = quantization if isinstance(quantization, Mapping) else {}
    method = values.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in values else "an unnamed method")
    bits = "4-bit" if values.get("load_in_4bit") or values.get("_load_in_4bit") else "8-bit"
    kept = QUANTIZED.get(str(method), f"numbers quantized by {method}").format(bits=bits)
    advice = f"{DEQUANTIZE}, or {QLORA}" if method == "mxfp4" else QLORA
    return f"its weights are {kept}; {advice}"


def of_files(directory: Path) -> str | None:
    """Say what a directory is that lacks weights or a configuration; None if its files do not tell."""
    return next((words for pattern, words in FILES.items() if next(directory.glob(pattern), None)), None)


def of_class(architectures: Any) -> str | None:
    """Say what a model of another class is, by the name of the class; None if the name does not tell."""
    named = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(named, str):
        return None
    words = next((words for end, words in CLASSES.items() if re.search(f"({end})$", named)), None)
    return words and f"is {words} ({named}); expected a causal language model"
