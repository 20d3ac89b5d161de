"""Checks of a user's own block before it is trained: its source, its interface and its size.

`trainers.models.own_block` lists what the block's module must offer; docs/own-block.md has an
example.
"""

import hashlib
import importlib
import inspect
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import nn

from trainers.models.build import configuration, feed_forwards
from trainers.models.decoder import Attention, Decoder
from trainers.models.model_spec import BlockSpec, ModelSpec
from trainers.models.own_block import REPLACEABLE, block_class, replaces_whole_block
from trialstore.errors import InputError

#: Modules whose parameters count as norms.
NORMS = (nn.LayerNorm, nn.RMSNorm)
PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

#: Hash of each source file when this process first imported it.
_imported: dict[str, str] = {}


def resolve(path: str) -> BlockSpec:
    """Import a block, and return it with the hash of its source as it is now.

    Args:
        path: The block's class, `package.module:Class`.

    Raises:
        InputError: There is no such class, it is not a block, or its source was edited after this
            process imported it.
    """
    source = source_file(path)
    found = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    if _imported.setdefault(str(source), found) != found:
        raise InputError(
            f"model.block: {source} has been edited since this process imported it, and the "
            "process still has the old class; start the command again"
        )
    return BlockSpec(path=path, source_hash=found)


def check(block: BlockSpec) -> None:
    """Raise InputError if a block's source has changed since the trial was planned."""
    now = resolve(block.path)
    if now.source_hash != block.source_hash:
        raise InputError(
            f"model.block: the source of {block.path} has changed: its hash is "
            f"{now.source_hash}, and the trial was planned with {block.source_hash}. Restore it, "
            "or plan the sweep anew under another name"
        )


def source_file(path: str) -> Path:
    """Import a block, and return the file that its class comes from.

    Raises:
        InputError: There is no such class, or it is not a block.
    """
    if not PATH.fullmatch(path):
        raise InputError(f"model.block: {path!r} must be written package.module:Class")
    module, _, name = path.partition(":")
    found = getattr(_import(path, module), name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(
            f"model.block: {path!r}: {module} has no module class {name}; it has "
            f"{', '.join(_module_classes(module)) or 'none'}"
        )
    replaces = getattr(found, "replaces", REPLACEABLE[0])
    if replaces not in REPLACEABLE:
        raise InputError(
            f"model.block: {path!r} replaces {replaces!r}; it may be {' or '.join(REPLACEABLE)}"
        )
    return Path(inspect.getfile(found))


def _import(path: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module}.".startswith(f"{absent}."):
            raise InputError(
                f"model.block: {path!r}: there is no module {absent}. Put it into the folder of "
                "the sweep file, the current folder or a folder on PYTHONPATH, on every machine "
                "that trains"
            ) from error
        raise InputError(
            f"model.block: {path!r}: {module} fails when it is imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def _module_classes(module: str) -> list[str]:
    return [
        name
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    ]


@lru_cache(maxsize=512)
def _on_paper(model: ModelSpec) -> Decoder:
    """The decoder, without memory for its weights. Raises InputError if the block cannot be built,
    or has no modules for the probe to tap."""
    assert model.block is not None
    source_file(model.block.path)
    try:
        with torch.device("meta"):
            decoder = Decoder(configuration(model))
        for ffn, width in zip(feed_forwards(decoder), model.ffn_widths, strict=True):
            for name in ("nonlinearity_input", "down"):
                if not isinstance(getattr(ffn, name), nn.Module):
                    raise TypeError(f"its {name} is not a module")
            if ffn.width != width:
                raise ValueError(f"its width is {ffn.width!r}, but it was built with {width}")
        _refuse_second_names(decoder.layers)
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"model.block: {model.block.path} cannot be built for d_model {model.d_model} and "
            f"D {model.ffn_widths[0]}: {type(error).__name__}: {error}"
        ) from error
    return decoder


def _refuse_second_names(layers: nn.Module) -> None:
    """Raise ValueError if a parameter has two names: it would be stored and loaded as two."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in layers.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise ValueError(
                f"{names[parameter]} and {name} are one parameter; keep the module under one name, "
                "and use a property for the other"
            )
        names[parameter] = name


def count_layers(model: ModelSpec) -> dict[str, int]:
    """Return the parameters of all layers of a model with a user's own block, by component.

    The components are "attention" (in widthlab's class), "norm" (in torch's norm classes), and
    "ffn", which is everything else.
    """
    layers = _on_paper(model).layers
    norms = _numel(module for module in layers.modules() if isinstance(module, NORMS))
    attention = _numel(
        linear
        for module in layers.modules()
        if isinstance(module, Attention)
        for linear in module.modules()
        if isinstance(linear, nn.Linear)
    )
    total = sum(parameter.numel() for parameter in layers.parameters())
    return {"attention": attention, "norm": norms, "ffn": total - attention - norms}


def _numel(modules: Iterable[nn.Module]) -> int:
    """The number of parameters of modules; a shared parameter counts once."""
    held = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in held)


def left_to_adamw(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the layer weights of two or more dimensions that Muon leaves to AdamW.

    They are stacks of matrices and convolution kernels.

    Returns:
        Their shapes, by parameter name.
    """
    from trainers.engine.optimizer import is_layer_matrix

    return {
        name: tuple(parameter.shape)
        for name, parameter in _on_paper(model).named_parameters()
        if name.startswith("layers.")
        and parameter.ndim >= 2
        and not is_layer_matrix(name, parameter)
    }


def layer_matrices(model: ModelSpec) -> int:
    """Return how many weights of all layers are multiplied per token.

    Every matrix counts once, unless the block's class states a number with `matrix_weights`.

    Raises:
        InputError: `matrix_weights` fails, or does not return a number.
    """
    assert model.block is not None
    layers = _on_paper(model).layers
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim >= 2)
    stated = getattr(block_class(model.block.path), "matrix_weights", None)
    if stated is None:
        return matrices
    if replaces_whole_block(model.block.path):
        matrices = 0
    else:
        for ffn in feed_forwards(_on_paper(model)):
            own = cast(nn.Module, ffn).parameters()
            matrices -= sum(p.numel() for p in own if p.ndim >= 2)
    config = configuration(model)
    for width in model.ffn_widths:
        try:
            weights = stated(config, width)
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"model.block: {model.block.path}.matrix_weights fails for D {width}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(weights, int) or weights < 0:
            raise InputError(
                f"model.block: {model.block.path}.matrix_weights gives {weights!r} for D {width}; "
                "it must be a number of weights"
            )
        matrices += weights
    return matrices
