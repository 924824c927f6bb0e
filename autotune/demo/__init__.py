"""Data and a model for a first try: `data=demo` (conversations.jsonl) and `model=tiny` (tiny/).

The weights of the model are drawn when it is first used. `python -m autotune.demo.make` writes the data and the
tokenizer again, byte for byte.
"""

from pathlib import Path

HERE = Path(__file__).parent
CONVERSATIONS = HERE / "conversations.jsonl"
TINY = HERE / "tiny"
