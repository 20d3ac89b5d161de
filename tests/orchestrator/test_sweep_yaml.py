"""YAML as its users expect it, and errors that name line and column."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.strict_yaml import Inline, dump, read
from trialstore.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("6.0e-3", 0.006),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("0x1f", "0x1f"),
        ("'1e-3'", "1e-3"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("-.inf", -math.inf),
        ("a=b", "a=b"),
        ("[0, 1]", [0, 1]),
        ("9" * 30, float("9" * 30)),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = read(text, "f.yaml").content
    assert found == value
    assert type(found) is type(value)


def test_an_empty_value_is_null():
    assert read("a:\nb: 1", "f.yaml").content == {"a": None, "b": 1}


def test_anchors_and_merge_keys_are_understood():
    text = "a: &base {b: 1, c: 2}\nd: *base\ne: {<<: *base, c: 3}"
    assert read(text, "f.yaml").content == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 2},
        "e": {"b": 1, "c": 3},
    }


def test_lines_are_those_of_the_keys_and_items():
    lines = read("a: 1\n\nb:\n  c: 2\n  d:\n    - 3\n    - 4\n", "f.yaml").lines
    assert lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "d"): 5,
        ("b", "d", 0): 6,
        ("b", "d", 1): 7,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"f.yaml, line 3, column 1: .*'a'.*line 1"),
        ("a: {b: 1, b: 2}", r"line 1, column 11: .*'b'"),
        ("a:\n\t- b", r"line 2, column 1: .*'\\t'"),
        ("a: [1, 2", r"line 1, column 9: "),
        ("a: 1\n---\nb: 2", r"line 2, column 1: "),
        ("a: *b", r"'b'"),
        ("a: &x [*x]", r"f.yaml.*anchor"),
        ("a: &x {b: *x}", r"f.yaml.*anchor"),
        ("[a]: 1", r"f.yaml.*key"),
        ("a: !!python/object/apply:os.getcwd []", r"python/object/apply:os.getcwd"),
        ("a: !!timestamp 3", r"timestamp"),
        ("a: !!int abc", r"line 1, column 4: .*'abc'.*int"),
        ("", r"f.yaml: "),
        ("# only a comment\n", r"f.yaml: "),
        (b"a: \xff", r"f.yaml: .*YAML"),
        ("a: \x07", r"f.yaml: .*YAML"),
        ("[" * 5000, r"f.yaml: .*nested"),
    ],
)
@pytest.mark.long
def test_what_cannot_be_read_is_named_with_its_place(text, message):
    with pytest.raises(InputError, match=message):
        read(text, "f.yaml")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcxyz_.-0123456789e", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_what_is_written_is_read_back_by_this_reader_and_by_pyyaml(value):
    text = dump({"value": value})
    assert read(text, "f.yaml").content == {"value": value}
    assert yaml.safe_load(text) == {"value": value}


def outcome(text: str) -> str:
    try:
        read(text, "f.yaml")
    except InputError as error:
        return str(error)
    return "f.yaml was read"


@given(st.text() | st.text("ab01e.:-?[]{}&*!<#'\"|>%@~, \n\t", max_size=40))
def test_any_text_is_either_read_or_refused_as_bad_input(text):
    assert outcome(text).startswith("f.yaml")


def test_an_inline_mapping_takes_one_line():
    text = dump({"a": Inline({"b": 1, "c": [2, 3]}), "d": {"e": 1}})
    assert text == "a: {b: 1, c: [2, 3]}\nd:\n  e: 1\n"
