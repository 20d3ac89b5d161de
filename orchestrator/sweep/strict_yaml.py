"""YAML as its users expect it: 1e-3 is a number, `no` is a word, a key twice is an error.

PyYAML reads YAML 1.1, where `1e-3` is a string, `off` is false, `1:30` is ninety and the last of
two equal keys wins in silence. This reader takes the scalars of the YAML 1.2 core schema from a
safe loader, and remembers the line of every key for the error messages that come later.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from trialstore.errors import InputError

Path = tuple[str | int, ...]

TAG = "tag:yaml.org,2002:"

#: https://yaml.org/spec/1.2.2/#1032-tag-resolution, without octal and hexadecimal numbers, which
#: no key of ours wants: name, pattern, first characters ("" is an empty value). Integers beyond
#: 18 digits read as floats: no count is that large.
CORE_SCHEMA: tuple[tuple[str, str, list[str]], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]{1,18}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
)


#: More than anybody writes; aliases can stand for any number.
MOST_VALUES = 100_000


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, and the line (from 1) of each key and list item."""

    content: Any
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2, and no tag beyond them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors = {
        TAG + name: yaml.SafeLoader.yaml_constructors[TAG + name] for name in ("map", "seq", "str")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}


class _Dumper(yaml.SafeDumper):
    """Writes what both this reader and a YAML 1.1 reader take for the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Inline(dict[str, Any]):
    """A mapping that `dump` writes on one line."""


for _name, _pattern, _first in CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _scalar(convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            return convert(text)
        except ValueError as error:  # an explicit tag on something else, such as !!int abc
            raise yaml.MarkedYAMLError(
                problem=f"{text!r} is no {node.tag.removeprefix(TAG)}",
                problem_mark=node.start_mark,
            ) from error

    return construct


_Loader.add_constructor(TAG + "bool", _scalar(lambda text: text.lower() == "true"))
_Loader.add_constructor(TAG + "int", _scalar(int))
_Loader.add_constructor(TAG + "float", _scalar(_number))
_Loader.add_constructor(TAG + "null", _scalar(lambda text: None))


def _represent_inline(dumper: _Dumper, data: Inline) -> yaml.Node:
    return dumper.represent_mapping(TAG + "map", dict(data), flow_style=True)


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    nested = any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence(TAG + "seq", data, flow_style=not nested)


_Dumper.add_representer(Inline, _represent_inline)
_Dumper.add_representer(list, _represent_list)


def read(text: str | bytes, place: str) -> Document:
    """Parse one YAML document. Raises InputError naming place, line and column."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise InputError(f"{place}: there is nothing in it")
            lines: dict[Path, int] = {}
            if _check(node, (), lines, set(), {}) > MOST_VALUES:
                raise InputError(f"{place}: its aliases stand for more than {MOST_VALUES:,} values")
            return Document(loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = error.problem or error.context
        raise InputError(f"{place}{where}: not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: not valid YAML text: {reason}") from error
    except RecursionError as error:
        raise InputError(f"{place}: nested too deeply to be read") from error


def dump(content: Any) -> str:
    """YAML text, keys in their order, that `read` and PyYAML read back as `content`."""
    text: str = yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1 << 16,  # never breaks a line
    )
    return text


def _check(
    node: yaml.Node, path: Path, lines: dict[Path, int], above: set[int], sizes: dict[int, int]
) -> int:
    """Refuse doubled keys and anchors that contain themselves; note the lines.

    How many values the node stands for: a few lines of aliases may stand for billions.
    """
    if id(node) in above:
        raise yaml.MarkedYAMLError(
            problem="an anchor contains itself", problem_mark=node.start_mark
        )
    if id(node) in sizes:  # an alias: checked where it was anchored
        return sizes[id(node)]
    above.add(id(node))
    size = 1
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a plain name", problem_mark=key.start_mark
                )
            line = key.start_mark.line + 1
            if key.value in first:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands here again, first in line "
                    f"{first[key.value]}; remove one",
                    problem_mark=key.start_mark,
                )
            first[key.value] = line
            lines[(*path, key.value)] = line
            size += _check(value, (*path, key.value), lines, above, sizes)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            size += _check(item, (*path, index), lines, above, sizes)
    above.remove(id(node))
    sizes[id(node)] = size
    return size
