"""A trial's directory on the local disk."""

from pathlib import Path

import pytest

from trialstore.storage import LocalStorage


@pytest.fixture
def trial(tmp_path: Path) -> LocalStorage:
    """A trial's directory, which does not exist yet."""
    return LocalStorage(tmp_path / "trial")
