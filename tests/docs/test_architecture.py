"""docs/architecture.md shows the code as it is: its folders, its picture of the imports, and its words."""

import re
from collections import Counter
from pathlib import Path

from tests.test_imports import MODULES, ORDER, imported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = "\n".join(
    path.read_text(encoding="utf-8") for path in (*MODULES.values(), *(ROOT / "docs").glob("interface.md"))
)


def folder_of(module: str) -> str:
    """`core.memory` of `core.memory.law`; empty for the modules beside the folders."""
    return module.rpartition(".")[0]


def imports_of_folders() -> dict[str, set[str]]:
    """The folders that each folder imports from. The modules beside the folders are not counted."""
    found: dict[str, set[str]] = {folder_of(module): set() for module in ORDER if folder_of(module)}
    for module in ORDER:
        names = {name.removeprefix("autotune.") for name in imported(MODULES[module])}
        folders = {folder_of(name) for name in names & set(ORDER)}
        if folder_of(module):
            found[folder_of(module)] |= folders - {"", folder_of(module)}
    return found


def reached_from(folder: str, imports: dict[str, set[str]]) -> set[str]:
    """The folders that `folder` imports from, directly or through others."""
    return imports[folder].union(*(reached_from(other, imports) for other in imports[folder]))


def test_the_picture_shows_the_imports() -> None:
    """Its arrows are the imports between folders, without those that follow from others."""
    imports = imports_of_folders()
    needed = {
        (folder, other)
        for folder, others in imports.items()
        for other in others
        if not any(other in reached_from(between, imports) for between in others - {other})
    }
    assert set(re.findall(r"^ +([\w.]+) --> ([\w.]+)$", PAGE, flags=re.MULTILINE)) == needed


def test_the_table_names_every_folder() -> None:
    """A new folder is explained."""
    folders = re.findall(r"^\| `([\w/]+)/` \|", PAGE, flags=re.MULTILINE)
    assert [folder.replace("/", ".") for folder in folders] == list(imports_of_folders())


def test_every_word_is_used() -> None:
    """The glossary explains the code's own words: each is in the code or on the command line, as it is or with `_`."""
    words = re.findall(r"^\| ([\w ]+) \| (?!what it is for|meaning)", PAGE, flags=re.MULTILINE)
    assert len(words) > 30
    assert [word for word in words if not re.search(rf"\b{word.replace(' ', '[ _]')}\b", CODE, re.IGNORECASE)] == []


def test_no_class_has_the_name_of_another() -> None:
    """One word for one idea: no two modules define a class of the same name."""
    names = Counter(
        name
        for path in MODULES.values()
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.M)
    )
    assert [name for name, count in names.items() if count > 1] == []
