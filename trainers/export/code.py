"""The source code in an exported model that `transformers` has no class for.

The model's files and a user's block may import only torch, transformers and the standard library,
so that the directory loads without widthlab.
"""

import ast
import re
import sys
from pathlib import Path

from trainers import check_block
from trainers.models import decoder
from trainers.models.own_block import block_class
from trialstore.errors import InputError

MODEL_FILES = ("decoder", "placements", "linear", "ngpt", "own_block")
#: Further modules of a model with a user's own block.
ENTRY, BLOCK = "modeling_widthlab", "block"

ENTRY_SOURCE = '''"""The decoder of decoder.py with the block {path} in block.py."""

from .{block} import {name}
from .decoder import Decoder as WidthlabDecoder
from .decoder import DecoderConfig as WidthlabConfig
from .own_block import KNOWN

KNOWN["{path}"] = {name}


class DecoderConfig(WidthlabConfig):
    """A class of its own: transformers maps every configuration class to one model class."""


class Decoder(WidthlabDecoder):
    """A class of this file, so that `save_pretrained` copies the block too."""

    config_class = DecoderConfig
'''

#: Packages that a block's module may import, besides the standard library.
ALLOWED = ("torch", "transformers")
OURS = "trainers.models"
IMPORT_OF_OURS = re.compile(rf"from\s+{re.escape(OURS)}\.(\w+)\s+import\b")


def write_code(folder: Path, block: str | None) -> dict[str, str]:
    """Write the model's source code into a model directory.

    Args:
        folder: The directory.
        block: `package.module:Class` of the user's own block; None for widthlab's.

    Returns:
        The `auto_map` for the model's configuration.

    Raises:
        InputError: The block's module imports something that the directory cannot carry.
    """
    entry = "decoder"
    if block is not None:
        entry = ENTRY
        name = block_class(block).__name__
        source = check_block.source_file(block)
        (folder / f"{BLOCK}.py").write_text(portable(source), encoding="utf-8")
        (folder / f"{ENTRY}.py").write_text(
            ENTRY_SOURCE.format(path=block, block=BLOCK, name=name), encoding="utf-8"
        )
    ours = Path(decoder.__file__).parent
    for file in MODEL_FILES:
        text = (ours / f"{file}.py").read_text(encoding="utf-8")
        (folder / f"{file}.py").write_text(text, encoding="utf-8")
    return {"AutoConfig": f"{entry}.DecoderConfig", "AutoModelForCausalLM": f"{entry}.Decoder"}


def portable(source: Path) -> str:
    """Return the source of a block's module with its imports of widthlab made relative.

    Raises:
        InputError: It imports anything but torch, transformers, the standard library and the
            model files. The message names file, line and module.
    """
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text, str(source))):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module.removeprefix(f"{OURS}.") in MODEL_FILES and module.startswith(OURS):
                line = lines[node.lineno - 1]
                start = _characters(line, node.col_offset)
                found = IMPORT_OF_OURS.match(line, start)
                if found is None:
                    raise _refusal(source, node, module, "write the import on a line of its own")
                lines[node.lineno - 1] = (
                    f"{line[:start]}from .{found[1]} import{line[found.end() :]}"
                )
            else:
                _check(source, node, module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _check(source, node, alias.name)
    return "".join(lines)


def _check(source: Path, node: ast.stmt, module: str) -> None:
    top = module.partition(".")[0]
    if top not in ALLOWED and top not in sys.stdlib_module_names:
        ours = ", ".join(f"{OURS}.{name}" for name in MODEL_FILES)
        raise _refusal(
            source,
            node,
            module,
            f"an exported model's block may import torch, transformers, the standard library, and "
            f"names from {ours} (from {OURS}.decoder import Block)",
        )


def _refusal(source: Path, node: ast.stmt, module: str, way_out: str) -> InputError:
    return InputError(f"{source}, line {node.lineno}: imports {module}: {way_out}")


def _characters(line: str, offset: int) -> int:
    """Convert a column of `ast`, which counts UTF-8 bytes, to characters."""
    return len(line.encode()[:offset].decode())
