"""The format numbers of the two files that other programs read: `run.yaml` and `result.json`.

Each file carries its number under the key `format`. The number rises when a key goes away or changes its meaning, and
stays when a key is added. A file without a number is of format 1: the first files had none.
"""

from collections.abc import Mapping
from typing import Any

RUN_FORMAT = 1
RESULT_FORMAT = 1


def format_problem(document: Mapping[Any, Any], *, newest: int, where: str) -> str | None:
    """Say why this version cannot read a document, or return None when it can.

    newest: the newest format that this version knows. where: the document's file, for the message.
    """
    number = document.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        return f"{where}: format={number}: expected the number of the file's format, from 1 to {newest}"
    if number > newest:
        return (
            f"{where}: format={number}: the file is newer than this autotune, which reads formats up to {newest}; "
            "update autotune"
        )
    return None
