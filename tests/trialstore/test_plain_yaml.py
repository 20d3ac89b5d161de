"""YAML of this project, maybe written by somebody else: read, or refused with its place."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trialstore.errors import InputError
from trialstore.plain_yaml import DEEPEST, load_plain_yaml

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab [{-:")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_was_written_is_read_back(value: object) -> None:
    assert load_plain_yaml(yaml.safe_dump(value).encode(), "sweep.yaml") == value


#: Every line refers to the one before; the last of equal keys counts, and holds them all.
CHAIN = "k: &x0 [1]\n" + "".join(f"k: &x{n} [*x{n - 1}]\n" for n in range(1, 5000))
#: Each line is ten times the one before.
BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * (DEEPEST + 1), "nested"),
        ("- " * (DEEPEST + 1), "nested"),
        (CHAIN, "nested"),
        (BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: [", "YAML"),
        ("a: \x00", "YAML"),
        ("a: 2026-13-45", "YAML"),
        ("!!python/object/apply:os.getcwd []", "YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_anything_else_is_bad_input_and_says_where(text: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"sweep\.yaml.*{why}"):
        load_plain_yaml(text.encode(), "sweep.yaml")
