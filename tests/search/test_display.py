"""What a search shows: one table, live in a terminal and line by line elsewhere."""

from io import StringIO

from rich.console import Console

from autotune.core.outcome import OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.search.display import SearchDisplay
from tests.core.examples import candidate
from tests.stand_ins import measured

NO_MEMORY = OutOfMemory(message="", peak_bytes=2**31, wall_s=1.0)
TRIALS = (
    Trial(number=0, role="baseline", candidate=candidate(), outcome=measured()),
    Trial(number=1, role="by_hand", candidate=candidate(checkpointing="full"), outcome=NO_MEMORY),
)


def test_plain_lines_are_a_table() -> None:
    """A heading, then a row for each trial; every column begins or ends where its heading does."""
    shown = StringIO()
    with SearchDisplay(Console(file=shown, width=200)) as display:
        display.end(TRIALS[0])  # of an earlier sitting: the clock is not set yet
        display.set_end(90.0)
        display.end(TRIALS[1])
    heading, first, second = shown.getvalue().splitlines()
    assert first.split()[:6] == ["0000", "baseline", "100", "±1%", "1", "B"]
    assert second.split()[:6] == ["0001", "by", "hand", "out", "of", "memory"]
    assert "90.0 s" in second
    assert "90.0 s" not in first
    for place in (heading.index("why"), heading.index("candidate")):
        assert [line[place - 1] for line in (first, second)] == [" ", " "]
        assert " " not in (first[place], second[place])
    assert first[: heading.index("memory") + 6].endswith("1 B")
    assert second[: heading.index("memory") + 6].endswith("2 GiB")


def test_it_says_what_stopping_would_cost_where_that_changed() -> None:
    """Rounded up; nothing where it is not known."""
    shown = StringIO()
    with SearchDisplay(Console(file=shown, width=200)) as display:
        for share in (None, 1.43, 0.121, 0.129, 0.0, None):
            display.set_most_to_gain(share)
    believed = "no candidate that is left is believed to"
    assert shown.getvalue().splitlines() == [
        f"{believed} be more than 2.5 times as fast as the best",
        f"{believed} beat the best by more than 13 %",
        f"{believed} beat the best by more than 1 %",
    ]


def test_in_a_terminal_the_caption_says_it() -> None:
    """Below the rows of all trials, with the best rate and the time that is left; the running trial is a row, too."""
    shown = StringIO()
    with SearchDisplay(Console(file=shown, width=200, force_terminal=True)) as display:
        display.end(TRIALS[0])
        display.set_end(90.0)
        display.set_most_to_gain(0.12)
        display.begin(1, "search", candidate())
        display.event({"event": "step"})
    text = shown.getvalue()
    assert "best 100; no candidate that is left is believed to beat the best by more than 12 %; 90.0 s left" in text
    assert "step 1 ..." in text
