"""Claims about local paths as users write them."""

from pathlib import Path

import pytest

from trainers.data.paths import user_path
from trialstore.errors import InputError


def test_a_home_folder_is_expanded_and_a_folder_named_like_one_is_not() -> None:
    assert user_path("WIDTHLAB_CACHE", "~/cache") == Path.home() / "cache"
    assert user_path("WIDTHLAB_CACHE", "./~nobody-is-called-so") == Path("~nobody-is-called-so")
    with pytest.raises(InputError, match="WIDTHLAB_CACHE: path '~nobody-is-called-so'"):
        user_path("WIDTHLAB_CACHE", "~nobody-is-called-so")
