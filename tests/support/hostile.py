"""Mutations of what a user or a shared storage may hand to the command: for the hostile tests.

Every mutator is a hypothesis strategy, so that what it finds is shrunk to a small file.
"""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Path = tuple[str | int, ...]

#: One of each kind that a reader may not expect in a place.
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 1.5, 0.0, -0.5, 10**6, 2**31, 2**63, 10**18, 10**30, 10**400,
    1e-320, 1e308, math.inf, -math.inf, math.nan,
    "", " ", "a", "none", "null", "nan", ".inf", "1e3", "0x10", "yes", "2020-01-01", "1:30", "-",
    "../..", "/", "~nobody", "a b", "a\nb", "a\tb", "é", "\u202e", "\u2028", "😀", "\0", "%s",
    "{0}", "$(id)", "'", '"', "x" * 5000, "http://[::1", "s3://", "file://", "python-source",
]  # fmt: skip
COLLECTIONS: list[Any] = [
    [], {}, [[]], [{}], {"a": 1}, {"kind": "nothing"}, {1: 2}, {None: None}, [None], [1, "a", [2]],
    [math.nan, math.inf], [1] * 50, {"a": {"b": {"c": {}}}}, {"": ""},
]  # fmt: skip


def nested(depth: int, leaf: Any = 1) -> Any:
    """Lists within lists, deeper than any reader expects."""
    value = leaf
    for _ in range(depth):
        value = [value]
    return value


def values() -> st.SearchStrategy[Any]:
    """What may stand where something else was expected."""
    return st.one_of(
        st.sampled_from(SCALARS),
        st.sampled_from(COLLECTIONS).map(copy.deepcopy),  # what is drawn may be changed
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.lists(st.sampled_from(SCALARS), max_size=4),
    )


def places(content: Any, path: Path = ()) -> list[Path]:
    """Every place in a tree, from its root."""
    found = [path]
    if isinstance(content, dict):
        for key, value in content.items():
            found += places(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            found += places(value, (*path, index))
    return found


@st.composite
def mutated_tree(draw: st.DrawFn, content: Any, most: int = 3) -> Any:
    """A tree with one to `most` places that hold something else, twice, nothing, or more."""
    tree = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            tree = draw(values()) if draw(st.integers(0, 9)) == 0 else tree
            continue
        holder = tree
        for step in path[:-1]:
            holder = holder[step]
        last = path[-1]
        kind = draw(st.sampled_from(["replace", "replace", "drop", "wrap", "rename", "more"]))
        if kind == "replace":
            holder[last] = draw(values())
        elif kind == "drop":
            del holder[last]
        elif kind == "wrap":
            holder[last] = draw(st.sampled_from([[holder[last]], {"a": holder[last]}]))
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8) | st.sampled_from(["x", "grid", 1, None]))] = (
                holder.pop(last)
            )
        elif isinstance(holder, list):
            holder += [copy.deepcopy(holder[last]) for _ in range(draw(st.integers(1, 3)))]
        else:
            holder[draw(st.text(max_size=8))] = draw(values())
    return tree


# --- text ----------------------------------------------------------------------------------

#: Lines that mean something to a reader of YAML, or should not.
LINES = [
    "---", "...", "%YAML 1.2", "%TAG ! tag:x,2000:", "\t- a", "a: &a [*a]", "b: *nowhere",
    "c: !!python/object/apply:os.system [id]", "d: !!binary =", "e: !!set {a, b}", "<<: *x",
    "<<: {name: y}", "? [a, b]\n: c", "f: |", "g: >-", "h: 'open", 'i: "\\x00"', "j: {a: 1, a: 2}",
    "name: again", "grid:", "  width_multiplier: [1, 2]", "k: [1, 2", "- 1", ": :", "#", "@", "`",
    "l: !!int abc", "m: !!float [1]", "n: 0o17", "o: !!timestamp 2020-01-01", "p: 12:30:45",
]  # fmt: skip
BYTES = [
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x80", b"\xed\xa0\x80", b"\r", b"\t", b"\x85",
    b"\x1b[2J", b"\xf4\x90\x80\x80", b"\n\n\n", b" " * 2000, b"\x7f",
]  # fmt: skip


def alias_bomb(levels: int) -> bytes:
    """A few lines that stand for 9 ** levels values."""
    first = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"
    rest = (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))
    return "\n".join([first, *rest]).encode() + b"\n"


@st.composite
def mutated_text(draw: st.DrawFn, data: bytes, most: int = 3) -> bytes:
    """Bytes of a text file with lines, bytes or whole parts that are out of place."""
    for _ in range(draw(st.integers(1, most))):
        lines = data.split(b"\n")
        at = draw(st.integers(0, len(lines) - 1))
        byte = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(
            st.sampled_from(["drop", "twice", "line", "bytes", "cut", "indent", "swap", "flip"])
        )
        if kind == "drop":
            data = b"\n".join(lines[:at] + lines[at + 1 :])
        elif kind == "twice":
            data = b"\n".join(lines[: at + 1] + lines[at:])
        elif kind == "line":
            new = draw(st.sampled_from(LINES) | st.text(max_size=20)).encode("utf-8", "replace")
            data = b"\n".join([*lines[:at], new, *lines[at:]])
        elif kind == "bytes":
            new = draw(st.sampled_from(BYTES) | st.binary(max_size=8))
            data = data[:byte] + new + data[byte:]
        elif kind == "cut":
            data = data[:byte]
        elif kind == "indent":
            pad = draw(st.sampled_from([b" ", b"    ", b"\t", b"- "]))
            data = b"\n".join([*lines[:at], pad + lines[at], *lines[at + 1 :]])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
            data = b"\n".join(lines)
        elif data:
            data = data[:byte] + bytes([data[byte] ^ draw(st.integers(1, 255))]) + data[byte + 1 :]
    return data


class _Dumper(yaml.SafeDumper):
    """Writes what `values` holds, numbers of any size included."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(tree: Any) -> bytes:
    return yaml.dump(tree, Dumper=_Dumper, allow_unicode=True).encode("utf-8", "replace")


def as_json(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode("utf-8", "replace")


def mutated_yaml(texts: list[bytes]) -> st.SearchStrategy[bytes]:
    """A sweep file that somebody has spoilt, by its meaning or by its letters."""
    trees: Callable[[bytes], st.SearchStrategy[bytes]] = lambda text: mutated_tree(  # noqa: E731
        yaml.safe_load(text)
    ).map(as_yaml)
    return st.sampled_from(texts).flatmap(lambda text: trees(text) | mutated_text(text))


def mutated_json(data: bytes) -> st.SearchStrategy[bytes]:
    """A record that somebody has spoilt."""
    odd = [b"", b"{}", b"[]", b"null", b"3", b'"a"', b"NaN", b"[" * 100_000, b"\xff", b"{" * 9]
    trees = mutated_tree(json.loads(data)).map(as_json)
    return st.one_of(trees, trees, mutated_text(data), st.sampled_from(odd))
