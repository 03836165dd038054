"""Messages that we did not write."""

from __future__ import annotations

import pathlib

import pytest

CORPORA = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora"


@pytest.fixture
def corpora() -> pathlib.Path:
    """The directory beside the project; skips where it is not: it is no part of the project."""
    if not CORPORA.is_dir():
        pytest.skip("../shared/corpora is not here")
    return CORPORA
