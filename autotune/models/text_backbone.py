"""The text backbone of a checkpoint of text and images: its language model alone, as a directory like any other model.

It is taken out once, tensor by tensor, and kept under `home`. checkpoint.py then checks that the directory has exactly
the weights of its class, as it checks every model. Leaves out finding the checkpoint (find.py).
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.units import count_of
from autotune.errors import UsageError, first_line
from autotune.models.catalogue import TEXT_BACKBONE
from autotune.models.checkpoint import problems_of_file, weight_files

LAYOUT = 1  # raise it when what `_fill` writes changes
NOT_TEXT = ("vision", "visual", "image", "audio", "speech", "projector")  # in names of tensors of other parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Where the language model lies among the tensors of a checkpoint.

    inside: what stands before the names of its layers; own: what its class has there instead. children: the first parts
    of the names behind it. head: the name of the head's weight in the checkpoint, None where it is tied. own_head: its
    name in the class.
    """

    inside: str
    own: str
    children: frozenset[str]
    head: str | None
    own_head: str

    def renamed(self, name: str) -> str | None:
        """The name of a tensor in the class; None if it belongs to another part."""
        if name == self.head:
            return self.own_head
        rest = name.removeprefix(self.inside)
        is_inside = name.startswith(self.inside) and rest.partition(".")[0] in self.children
        return f"{self.own}{rest}" if is_inside else None


def text_config(values: Mapping[str, Any], where: str) -> Any:
    """Return the configuration of the text backbone. values: of config.json. Raises UsageError when it has none."""
    from transformers import AutoConfig

    try:
        whole = AutoConfig.for_model(**{key: value for key, value in values.items() if key != "auto_map"})
    except Exception as error:  # a class may raise anything; the configuration is the user's to mend
        raise UsageError(f"{where}: its configuration cannot be read ({first_line(error)})") from error
    text = whole.get_text_config(decoder=True)
    if text is whole or text.model_type == whole.model_type:
        raise UsageError(f"{where}{TEXT_BACKBONE}: is a model of text alone; name it without {TEXT_BACKBONE}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype"):
        if values.get(name) is not None and name not in (values.get("text_config") or {}):
            setattr(text, name, values[name])
    text.tie_word_embeddings = bool(text.tie_word_embeddings or whole.tie_word_embeddings)
    text.architectures = None  # the class of the text backbone follows from its type
    return text


def take_text_backbone(
    directory: Path, *, home: Path, tokenizer: Iterable[Path], progress: Callable[[str], None]
) -> Path:
    """Return the directory of a checkpoint's text backbone, taking it out on first use.

    directory: of the whole checkpoint, in safetensors. tokenizer: its files. Raises UsageError where that is not
    possible.
    """
    config_file = directory / "config.json"
    values = json.loads(config_file.read_text(encoding="utf-8"))
    files, problems = weight_files(directory)
    problems = problems or [problem for file in files for problem in problems_of_file(file)]
    if not problems and any(file.suffix != ".safetensors" for file in files):
        problems = ["its weights are no safetensors, and only from these the text backbone is taken out"]
    if problems:
        raise UsageError(*(f"{directory}: {problem}" for problem in problems))
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in (config_file, *files, *tokenizer)]
    key = blake2b(json.dumps([LAYOUT, stats]).encode(), digest_size=12).hexdigest()
    kept = home / "models" / f"text-{key}"
    if not cache.is_whole(kept):
        config = text_config(values, str(directory))
        naming, left_out = _naming(config, files, str(directory))
        if naming.head is not None and (values.get("text_config") or {}).get("tie_word_embeddings") is False:
            config.tie_word_embeddings = False  # whatever the whole says: the checkpoint has a head of its own
        parts = ", ".join(f"{part} ({count})" for part, count in left_out.most_common())
        progress(
            f"taking the text backbone out of {directory}, once; left out: {count_of(left_out.total(), 'tensor')}"
            + (f" of {parts}" if parts else "")
        )
        cache.build(kept, lambda fresh: _fill(fresh, directory, config, files, naming, tokenizer))
    return kept


def _naming(config: Any, files: Iterable[Path], where: str) -> tuple[Naming, Counter[str]]:
    """Find the language model among the tensors, by its embeddings; and count the others by the part they are of."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        said = first_line(error)
        raise UsageError(f"{where}: transformers has no causal language model of its text backbone ({said})") from error
    config.architectures = [type(model).__name__]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            shapes |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    own, body = f"{model.base_model_prefix}.", model.base_model
    parameters = list(model.named_parameters(remove_duplicate=False))  # a tied weight has both of its names
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    first = next(name for name, parameter in parameters if parameter is embeddings)
    own_head = [name for name, parameter in parameters if parameter is head][-1]
    rest = first.removeprefix(own)
    found = [
        name
        for name, shape in shapes.items()
        if name.endswith(rest) and shape == tuple(embeddings.shape) and not any(word in name for word in NOT_TEXT)
    ]
    if len(found) != 1:
        raise UsageError(
            f"{where}: has {count_of(len(found), 'tensor')} named like {rest}, so its text backbone is not found"
        )
    heads = [
        name
        for name, shape in shapes.items()
        if name.endswith(own_head) and shape == tuple(head.shape) and not any(word in name for word in NOT_TEXT)
    ]
    if len(heads) > 1:
        raise UsageError(
            f"{where}: has several heads, and which one is of its text backbone is not known: {', '.join(heads)}"
        )
    naming = Naming(
        inside=found[0].removesuffix(rest),
        own=own,
        children=frozenset(name.partition(".")[0] for name in body.state_dict()),
        head=heads[0] if heads else None,  # where it is lacking and not tied, check_weights says so
        own_head=own_head,
    )
    others = (name for name in shapes if naming.renamed(name) is None)
    return naming, Counter(".".join(name.split(".")[:2]) for name in others)


def _fill(
    fresh: Path, directory: Path, config: Any, files: Iterable[Path], naming: Naming, tokenizer: Iterable[Path]
) -> None:
    """Write configuration, tokenizer and weights, one file for each file of the checkpoint."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    config.save_pretrained(fresh)
    for file in (*tokenizer, directory / "generation_config.json"):
        if file.is_file():
            target = fresh / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        with safe_open(file, "pt") as content:
            mine = {own: content.get_tensor(n) for n in content.keys() if (own := naming.renamed(n)) is not None}  # noqa: SIM118
        if mine:
            shard = f"model-{number:05}.safetensors"
            save_file(mine, fresh / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(mine, shard)
    size = sum(file.stat().st_size for file in fresh.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (fresh / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
