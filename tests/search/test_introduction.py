"""The introduction of a search: what a person should know before it begins."""

from dataclasses import replace

from autotune.core.candidate import Fidelity
from autotune.core.space.enumerate import enumerate_space
from autotune.core.workload import Workload
from autotune.search.introduction import introduction
from tests.core.examples import CPU, PLAIN, workload


def lines(work: Workload) -> list[str]:
    space = enumerate_space(workload=work, hardware=CPU, installed=PLAIN, fidelity=Fidelity.exact, fixed={})
    return list(introduction(work, CPU, space, explains=False))


def test_what_the_cut_takes_away_is_said_first() -> None:
    """With the rows that are left out, the longest row and the limit that cuts it."""
    cut, counts = lines(workload([100, 900] * 8, labels=10, model={"limit": 512}))
    assert cut == (
        "max_length=512 cuts 8 of 16 rows: 7,200 of 8,000 tokens (90.00%) are not trained; left out, because no label "
        "of them remains: 8 rows; the longest row has 900 tokens, and the model takes 512"
    )
    assert counts.endswith("combinations; explain=true lists why the others are not legal")
    assert len(lines(workload([100, 400] * 8))) == 1


def test_a_sample_is_named() -> None:
    """With what is known of the rows that were not tokenized."""
    work = workload([100, 400] * 8)
    data = replace(work.data, rows_in_file=160, share_tokenized=0.1, coverage_error=0.05)
    assert lines(replace(work, data=data))[0] == (
        "16 of 160 rows were tokenized; the mean length of all is known to within 5.0%"
    )
