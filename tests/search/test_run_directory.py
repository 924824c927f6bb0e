"""result.json: what other programs read."""

import json
from pathlib import Path

from autotune.core.decode import encode
from autotune.search.result import read_result
from autotune.search.run_directory import write_result
from tests.search.examples import BY_HAND, RECOMPUTED, findings


def test_the_file_is_read_back(tmp_path: Path) -> None:
    """What was written is what the reader returns; the format comes first, and run.yaml stands beside it."""
    result = write_result(findings(tmp_path))
    assert read_result(tmp_path / "result.json") == result
    assert next(iter(json.loads((tmp_path / "result.json").read_text()).items())) == ("format", 1)
    assert (tmp_path / "run.yaml").exists()


def test_the_space_says_what_is_missing_from_it(tmp_path: Path) -> None:
    """How many combinations each reason removed, and the values that cannot be had at all."""
    assert encode(write_result(findings(tmp_path)).space) == {
        "enumerated": 8,
        "legal": 3,
        "fitting": 2,
        "removed": {"a reason": 5},
        "left_out": {"attention=flash_attention_2": "is not installed"},
    }


def test_receipts_name_their_source(tmp_path: Path) -> None:
    """Measured in a trial, or predicted; what has no receipt is listed."""
    result = write_result(findings(tmp_path))
    allocator, checkpointing, attention = result.receipts
    assert (allocator.knob, allocator.value, allocator.without.value) == ("tuned_allocator", True, False)
    assert (allocator.without.source, allocator.without.trial) == ("measured", 1)
    assert allocator.without.candidate == BY_HAND
    assert (checkpointing.without.source, checkpointing.without.trial) == ("predicted", None)
    assert checkpointing.without.candidate == RECOMPUTED
    assert checkpointing.gain_interval[0] < checkpointing.gain < checkpointing.gain_interval[1]
    assert attention.gain_interval[0] < 0 < attention.gain_interval[1]
    assert result.without_receipt == ("batching",)
