"""An installed wheel works away from the checkout: with its conf/, its data, and the console script."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as site-packages has it, unpacked from a wheel that was built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, *command: str) -> str:
    """What a child prints that finds the wheel's files first, in a working directory of its own."""
    (site.parent / "elsewhere").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=site.parent / "elsewhere",
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_wheel_answers_away_from_the_checkout(site: Path) -> None:
    """The command line of the wheel is the one that runs, and it composes with the conf/ that the wheel carries."""
    assert run(site, "-c", "import autotune; print(autotune.__file__)").strip() == str(site / "autotune/__init__.py")
    assert run(site, "-m", "autotune", "--version").startswith("autotune ")
    assert "  path: tiny\n" in run(site, "-m", "autotune", "search", "experiment=demo", "model=tiny", "--cfg", "job")
    assert str(site / "autotune" / "conf") in run(site, "-m", "autotune", "search", "--info", "searchpath")


def test_the_wheel_carries_all_files(site: Path) -> None:
    """Every file of the package and of conf/ is in the wheel, and nothing else is beside it."""
    package = ROOT / "autotune"
    wanted = {
        path.relative_to(ROOT) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {Path("autotune") / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    found = {path.relative_to(site) for path in site.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in found if path.parts[0] == "autotune"} == wanted
    assert {path.parts[0].partition("-")[0] for path in found} == {"autotune", "autotune_sft"}


def test_the_wheel_installs_the_command(site: Path) -> None:
    """`autotune` is the console script, typed, under Apache-2.0."""
    (info,) = site.glob("*.dist-info")
    assert "autotune = autotune.cli.main:main" in (info / "entry_points.txt").read_text()
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text()
    assert (site / "autotune" / "py.typed").is_file()
