"""A user's own module in the place of an FFN or of a whole block: `package.module:Class`.

An FFN is made as `Class(config, width)` and maps (B, T, d_model) to (B, T, d_model). A class with
`replaces = "block"` is made as `Class(config, width, place)` and is the whole layer, attention and
norms included: it is called with (x, positions) as `decoder.Block` is, from which it may inherit,
and has its FFN at `ffn`. The FFN of either says where the probe taps: the output of its module
`nonlinearity_input` is the site "pre", the input of its module `down` is "post", `width` is their
D, the same number that it was made with.

Every matrix counts as multiplied once per token. A class of which that is not true, because it
uses a matrix twice or routes tokens, has a static method `matrix_weights(config, width)` that says
how many weights of one layer's own block are multiplied per token.

The file travels with exported models, so it imports nothing of widthlab.
"""

import importlib
from typing import Protocol

from torch import nn

#: What a class may replace; the first where it does not say.
REPLACEABLE = ("ffn", "block")
#: Classes that are known without an import: an exported model registers its own here.
KNOWN: dict[str, type[nn.Module]] = {}


class FeedForward(Protocol):
    """What the probe needs of an FFN."""

    width: int
    down: nn.Module

    @property
    def nonlinearity_input(self) -> nn.Module:
        """The module whose output enters the non-linearity."""


def block_class(path: str) -> type[nn.Module]:
    """The class at `package.module:Class`. Raises ImportError or AttributeError."""
    if path in KNOWN:
        return KNOWN[path]
    module, _, name = path.partition(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), name)
    return found


def replaces_whole_block(path: str) -> bool:
    """Whether that class takes the place of a whole block, not of the FFN alone."""
    return getattr(block_class(path), "replaces", REPLACEABLE[0]) == "block"
