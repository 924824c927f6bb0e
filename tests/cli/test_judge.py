"""The name that a wrong word stands for."""

import pytest

from autotune.cli.judge import nearest


@pytest.mark.parametrize(
    ("word", "name"),
    [("epochs", "recipe.epochs"), ("recipe.epohcs", "recipe.epochs"), ("sed", "seed"), ("qqq", None)],
)
def test_nearest(word: str, name: str | None) -> None:
    """The last part of a name is enough, a slip is forgiven, and nothing is better than a wild guess."""
    assert nearest(word, ["recipe.epochs", "recipe.method", "seed"]) == name
