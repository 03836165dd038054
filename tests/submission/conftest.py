"""Messages that we did not write."""

from __future__ import annotations

import os
import pathlib

import pytest

CORPORA = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora"


@pytest.fixture
def corpora() -> pathlib.Path:
    """The directory beside the project; skips where it is not, but with CI=true it must be there."""
    if not CORPORA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("../shared/corpora is missing")
        pytest.skip("not run here: ../shared/corpora is missing")
    return CORPORA
