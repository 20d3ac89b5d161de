"""Owners of claims with names in a known order."""

from collections.abc import Iterable
from types import ModuleType, SimpleNamespace

import pytest


def name_owners(patched: pytest.MonkeyPatch, module: ModuleType, letters: Iterable[str]) -> None:
    """Have each new owner of a claim be called after the next letter, 32 times."""
    names = iter(letters)
    patched.setattr(module.uuid, "uuid4", lambda: SimpleNamespace(hex=next(names) * 32))
