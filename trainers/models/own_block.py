"""A user's own module instead of the FFN or of the whole layer: `package.module:Class`.

- FFN: constructed as `Class(config, width)`; maps (B, T, d_model) to (B, T, d_model).
- Whole layer (`replaces = "block"`): constructed as `Class(config, width, place)` and called with
  (x, positions) like `decoder.Block`, from which it may inherit. It contains attention and norms,
  and its attribute `ffn` is its FFN.
- The FFN has the attributes of `FeedForward`, which tell the probe where to read.
- FLOPs count every matrix once per token. A class that uses a matrix twice, or routes tokens to
  experts, has a static method `matrix_weights(config, width)`: the number of weights of one
  layer's block that are multiplied per token.

docs/own-block.md has examples and rules.
An exported model carries a copy of this file, so it imports nothing of widthlab.
"""

import importlib
from typing import Protocol

from torch import nn

#: Values of a class's attribute `replaces`; the first is the default.
REPLACEABLE = ("ffn", "block")
#: Classes by path that need no import: an exported model registers its own block here.
KNOWN: dict[str, type[nn.Module]] = {}


class FeedForward(Protocol):
    """The attributes of an FFN that the probe reads.

    `width` is D. The input of the module `down` [..., D] is the site "post".
    """

    width: int
    down: nn.Module

    @property
    def nonlinearity_input(self) -> nn.Module:
        """The module whose output [..., D] enters the non-linearity: site "pre"."""


def block_class(path: str) -> type[nn.Module]:
    """Import and return the class at `package.module:Class`.

    Raises:
        ImportError: The module cannot be imported.
        AttributeError: The module has no such class.
    """
    if path in KNOWN:
        return KNOWN[path]
    module, _, name = path.partition(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), name)
    return found


def replaces_whole_block(path: str) -> bool:
    """Return whether the class at a path replaces the whole layer, not only the FFN.

    Raises what `block_class` raises.
    """
    return getattr(block_class(path), "replaces", REPLACEABLE[0]) == "block"
