"""What the tests of traces share: nothing that was there before is looked at by the garbage collector."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """A trace collects garbage twice. Walking all imported libraries would take as long as tracing a layer does."""
    gc.collect()
    gc.freeze()
