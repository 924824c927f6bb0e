"""Splits: which files of a directory are trained on, and which are never data."""

from pathlib import Path

import pytest

from autotune.data.splits import files_in, split_of
from autotune.errors import UsageError


def make(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text('{"text": "a"}\n')
    return directory


def chosen(directory: Path, split: str | None = None) -> tuple[str | None, list[str], list[str]]:
    """The split, its files and what is said."""
    lines: list[str] = []
    name, files = files_in(directory, split, lines.append)
    return name, [file.name for file in files], [line.replace(f" {directory.name} ", " DIR ") for line in lines]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("pro_test-00000-of-00002.parquet", "pro_test"),
        ("gsm8k-train-00000-of-00001.parquet", "train"),
        ("train.jsonl", "train"),
        ("Training_data.csv", "train"),
        ("train2.jsonl.gz", "train"),
        ("my.dev.jsonl", "validation"),
        ("val_1.json", "validation"),
        ("evaluation.csv", "test"),
        ("train-test.jsonl", "test"),
        ("latest.jsonl", None),
        ("restraining.jsonl", None),
        ("invalid.jsonl", None),
    ],
)
def test_a_name_says_the_split(name: str, split: str | None) -> None:
    """By the words of the package datasets; a word inside another is none."""
    assert split_of(Path(name)) == split


@pytest.mark.parametrize("name", ["train.jsonl", "my.dev.jsonl", "val_1.jsonl", "evaluation.jsonl", "latest.jsonl"])
def test_the_package_datasets_says_the_same(name: str, tmp_path: Path) -> None:
    """A file whose name says no split is trained on, when it is alone."""
    from datasets.data_files import get_data_patterns

    make(tmp_path, name)
    [split] = get_data_patterns(str(tmp_path))
    assert str(split) == (split_of(Path(name)) or "train")


def test_train_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    """Once, with their files, or how many there are. data.split= takes another one."""
    tests = [f"test-0000{number}-of-00004.parquet" for number in range(4)]
    make(tmp_path, "train-00000-of-00001.parquet", "validation.parquet", *tests)
    said = "the split {} of DIR is trained on; not used: {}"
    assert chosen(tmp_path) == (
        "train",
        ["train-00000-of-00001.parquet"],
        [said.format("train", "test (4 files), validation (validation.parquet)")],
    )
    assert chosen(tmp_path, "test")[:2] == ("test", tests)
    with pytest.raises(UsageError, match=r"data\.split=dev: .* has no such split, but test, train, validation"):
        chosen(tmp_path, "dev")


def test_the_only_split_is_taken_and_of_several_none(tmp_path: Path) -> None:
    """Rows that are named as test and validation are not trained without a word."""
    make(tmp_path, "test.jsonl")
    assert chosen(tmp_path) == ("test", ["test.jsonl"], ["the split test of DIR is trained on; it has no other"])
    make(tmp_path, "validation.jsonl")
    with pytest.raises(UsageError, match=r"has no split train, but test, validation; choose one by data\.split=NAME"):
        chosen(tmp_path)
    assert chosen(tmp_path, "validation")[1] == ["validation.jsonl"]


def test_files_whose_names_say_nothing_are_trained_on_unless_others_say_train(tmp_path: Path) -> None:
    """As the package datasets does it."""
    make(tmp_path, "b.jsonl", "a.jsonl")
    assert chosen(tmp_path) == (None, ["a.jsonl", "b.jsonl"], [])
    with pytest.raises(UsageError, match=r"data\.split=test: .* has no such split, but train"):
        chosen(tmp_path, "test")
    make(tmp_path, "test.jsonl")
    assert chosen(tmp_path)[1:] == (
        ["a.jsonl", "b.jsonl"],
        ["the split train of DIR is trained on; not used: test (test.jsonl)"],
    )
    make(tmp_path, "train.jsonl")
    assert chosen(tmp_path)[1:] == (
        ["train.jsonl"],
        [
            "not used, because the name says no split: a.jsonl, b.jsonl",
            "the split train of DIR is trained on; not used: test (test.jsonl)",
        ],
    )


def test_folders_may_hold_the_files(tmp_path: Path) -> None:
    """One for each split, or `data`, as in a clone from the hub; a folder of another name is not looked into."""
    make(tmp_path / "one", "train/a.jsonl", "test/a.jsonl", "runs/b.json", "README.md")
    assert chosen(tmp_path / "one")[:2] == ("train", ["a.jsonl"])
    assert chosen(tmp_path / "one", "test")[:2] == ("test", ["a.jsonl"])
    make(tmp_path / "two", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md")
    assert chosen(tmp_path / "two")[:2] == ("train", ["train-00000-of-00001.parquet"])
    make(tmp_path / "three", "rows.jsonl", "test/a.jsonl")
    assert chosen(tmp_path / "three") == (None, ["rows.jsonl"], [])


def test_the_same_rows_in_two_kinds_of_file_are_told(tmp_path: Path) -> None:
    """They would be trained twice."""
    make(tmp_path, "train.jsonl", "train.csv")
    assert chosen(tmp_path)[2] == ["files of different kinds are trained together: train.csv, train.jsonl"]


@pytest.mark.parametrize(
    "name",
    [
        "._rows.jsonl",
        ".DS_Store",
        ".rows.jsonl.swp",
        "_metadata.json",
        "dataset_info.json",
        "state.json",
        "rows.jsonl.lock",
        ".gitattributes",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "checkpoint-500/trainer_state.json",
        "checkpoint-500/rows.jsonl",
        ".cache/data.json",
        "trainer_state.json",
        "tokenizer.json",
        "config.json",
    ],
)
def test_what_tools_leave_is_no_data(tmp_path: Path, name: str) -> None:
    """Hidden files, bookkeeping, locks, checkpoints, and texts about the data."""
    make(tmp_path, "rows.jsonl", name)
    assert chosen(tmp_path) == (None, ["rows.jsonl"], [])


def test_a_saved_dataset_knows_its_split(tmp_path: Path) -> None:
    """`state.json` has it; a dataset that was made by hand has none."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"text": "a"}])
    rows.save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(UsageError, match=r"data\.split=test: .* it is a dataset without splits"):
        chosen(tmp_path / "plain", "test")
    DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "both"))
    (tmp_path / "both" / ".cache").mkdir()
    assert chosen(tmp_path / "both")[0] == "train"
    assert chosen(tmp_path / "both", "test")[0] == "test"
    with pytest.raises(UsageError, match=r"data\.split=dev: .* has no such split, but test, train"):
        chosen(tmp_path / "both", "dev")


def test_a_directory_without_data_says_what_it_has(tmp_path: Path) -> None:
    """And which files it would read."""
    make(tmp_path, "README.md", "checkpoint-1/a.jsonl")
    with pytest.raises(UsageError, match=r"holds no file ending in \.json, .*; it has README.md, checkpoint-1"):
        chosen(tmp_path)
