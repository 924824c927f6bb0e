"""benchmarks/models/causal_types.py: every type has a row, and none crashes."""

from benchmarks.models import causal_types
from benchmarks.rows import RESULTS, read
from benchmarks.search.documents_apart import model_types


def test_every_type_trains_or_is_refused_in_words() -> None:
    """And no type is trained on tokens that it sees."""
    rows = {row["model_type"]: row for row in read(RESULTS / "causal_types.jsonl")}
    assert rows.keys() == {*model_types()}
    assert [name for name, row in rows.items() if row["outcome"] == "crashes"] == []
    assert all(row["words"] for row in rows.values() if row["outcome"] != "trains")
    assert all(row["sees_ahead"] is False for row in rows.values() if row["outcome"] == "trains")


def test_a_small_configuration_has_the_tokenizers_vocabulary_and_few_positions() -> None:
    """Under whatever name its type has for the limit."""
    config = causal_types.small_config("mpt")
    assert (config.vocab_size, config.max_seq_len) == (causal_types.VOCABULARY, causal_types.POSITIONS)
