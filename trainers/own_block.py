"""A user's own block before it is trained: which source it is, and how large it is.

What its module must offer is said in `trainers.models.own_block`, and with an example in
docs/own-block.md.
"""

import hashlib
import importlib
import inspect
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import nn

from analysis.errors import InputError
from trainers.models.build import configuration, feed_forwards
from trainers.models.decoder import Attention, Decoder
from trainers.models.own_block import block_class
from trainers.spec import BlockSpec, ModelSpec


def resolve(path: str) -> BlockSpec:
    """The block at `package.module:Class` as it is now. Raises InputError if there is none."""
    source = source_file(path)
    return BlockSpec(path=path, source_hash=hashlib.sha256(source.read_bytes()).hexdigest()[:16])


def source_file(path: str) -> Path:
    """The file that a block's class comes from. Raises InputError naming what is missing."""
    module, _, name = path.partition(":")
    try:
        found = block_class(path)
    except ImportError as error:
        raise InputError(
            f"model.block: {path!r}: {module} cannot be imported ({error}); its folder must be on "
            "PYTHONPATH, or be the one that the command is run in"
        ) from error
    except AttributeError as error:
        known = [
            name
            for name, value in vars(importlib.import_module(module)).items()
            if inspect.isclass(value) and issubclass(value, nn.Module)
        ]
        raise InputError(
            f"model.block: {path!r}: {module} has no {name}; its modules are "
            f"{', '.join(known) or 'none'}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(f"model.block: {path!r} is no torch.nn.Module class")
    return Path(inspect.getfile(found))


def check(block: BlockSpec) -> None:
    """Raises InputError where the source is no longer what the trial was planned with."""
    now = resolve(block.path)
    if now.source_hash != block.source_hash:
        raise InputError(
            f"model.block: the source of {block.path} has changed: its hash is "
            f"{now.source_hash}, and the trial was planned with {block.source_hash}. Restore it, "
            "or plan the sweep anew under another name"
        )


@lru_cache(maxsize=512)
def _on_paper(model: ModelSpec) -> Decoder:
    """The decoder without memory for its weights. Raises InputError if the block cannot be made
    or does not say where the probe taps."""
    assert model.block is not None
    try:
        with torch.device("meta"):
            decoder = Decoder(configuration(model))
        for ffn in feed_forwards(decoder):
            for name in ("nonlinearity_input", "down"):
                if not isinstance(getattr(ffn, name), nn.Module):
                    raise TypeError(f"its {name} is no module")
            int(ffn.width)
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"model.block: {model.block.path} cannot be made for d_model {model.d_model} and "
            f"D {model.ffn_widths[0]}: {type(error).__name__}: {error}"
        ) from error
    return decoder


def count_layers(model: ModelSpec) -> dict[str, int]:
    """Parameters of all layers by component: of widthlab's attention and of norms by their
    classes, and everything else as FFN."""
    counts = {"attention": 0, "ffn": 0, "norm": 0}
    for module in _on_paper(model).layers.modules():
        owned = sum(p.numel() for p in module.parameters(recurse=False))
        counts["norm" if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else "ffn"] += owned
    for module in _on_paper(model).layers.modules():
        if isinstance(module, Attention):
            linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
            owned = sum(p.numel() for m in linear for p in m.parameters())
            counts["attention"] += owned
            counts["ffn"] -= owned
    return counts


def layer_matrices(model: ModelSpec) -> int:
    """Weights of all layers that are matrices: each is taken as multiplied once per token."""
    layers = cast(nn.ModuleList, _on_paper(model).layers)
    return sum(p.numel() for p in layers.parameters() if p.ndim >= 2)
