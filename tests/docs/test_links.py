"""The project's pages lead to places that exist. Links to the web are not followed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("runs", "build", "dist") for part in page.relative_to(ROOT).parts)
)
FENCED = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)\s*$", flags=re.MULTILINE)
FOLDERS = ("autotune", "benchmarks", "conf", "docs", "examples", "scripts", "tests")
PATH_IN_CODE = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text_of(page)))
    return {word.strip().replace(" ", "-") for word in words}


def test_there_are_pages_with_links() -> None:
    """What is tested below is not an empty list."""
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/interface.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }
    assert sum(len(LINK.findall(text_of(page))) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    """Each link to a file finds it, and each anchor is a heading of the page that it names."""
    broken = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A path such as `conf/run.yaml` in a sentence is one that a reader can open; NAME stands for a new file's name."""
    named = (path for path in PATH_IN_CODE.findall(text_of(page)) if "NAME" not in path)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_a_page_imports_exist(page: Path) -> None:
    """A dotted name such as `autotune.search.roofline.RooflineSampler` is a module, or a name that a module defines."""
    assert [name for name in re.findall(r"`(autotune\.[\w.]+)`", text_of(page)) if not is_there(name)] == []


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, a folder, or a class or function of a module."""
    whole = ROOT.joinpath(*name.split("."))
    if whole.is_dir() or whole.with_suffix(".py").exists():
        return True
    module = whole.parent.with_suffix(".py")
    defined = rf"^(class|def) {whole.name}\b"
    return module.exists() and re.search(defined, module.read_text(encoding="utf-8"), re.MULTILINE) is not None
