"""Fixtures for the tests of `trialstore`."""

from pathlib import Path

import pytest

from trialstore.storage import LocalStorage


@pytest.fixture
def trial(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "trial")
