"""A trial's directory."""

from pathlib import Path

import pytest

from trialstore.storage import LocalStorage


@pytest.fixture
def trial(tmp_path: Path) -> LocalStorage:
    """A trial's directory, which is not there yet."""
    return LocalStorage(tmp_path / "trial")
