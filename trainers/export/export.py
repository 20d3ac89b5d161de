"""Export a trial's newest checkpoint as a directory that `transformers` opens.

A model that computes the same as a Llama or GPT-2 becomes one. Every other carries its own source
code and needs `trust_remote_code=True`. Loading needs only torch and transformers.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from trainers.data.paths import user_path
from trainers.export.card import Loss, ModelCard, loading_lines
from trainers.export.code import write_code
from trainers.export.stock import as_stock, folded
from trainers.export.tokenizer import write_tokenizer
from trainers.export.weights import trained_model
from trainers.models.decoder import Decoder
from trialstore.errors import InputError
from trialstore.records import METRICS, BrokenRecordError, get_result, read_records
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """The result of an export, as `widthlab export --json` prints it.

    Attributes:
        out: Absolute path of the directory.
        step: Updates that the exported weights have had, of `steps` planned.
        outcome: How the trial ended; None if it has not.
        val_loss: Held-out loss in nats per token after `val_step` updates; None if not measured.
        load: Two lines of Python that open the directory.
    """

    out: str
    trial: str
    model_class: str
    trust_remote_code: bool
    dtype: Precision
    parameters: int
    step: int
    steps: int
    outcome: str | None
    val_loss: float | None
    val_step: int | None
    tokenizer: bool
    files: list[str]
    load: list[str]

    @property
    def summary(self) -> str:
        """The result as text for the terminal."""
        state = self.outcome or "unfinished"
        loss = "" if self.val_loss is None else f", held-out loss {self.val_loss:.4f} nats a token"
        return "\n".join(
            [
                f"wrote {self.out}",
                f"{self.model_class}, {self.parameters:,} parameters, {self.dtype}",
                f"trial {self.trial} ({state}) after {self.step} of {self.steps} updates{loss}",
                "",
                *self.load,
            ]
        )


def export(
    trial: Storage,
    out: str,
    dtype: Precision = "float32",
    tokenizer: bool = True,
    cache: Path | None = None,
    block: str | None = None,
) -> Exported:
    """Write the model of a trial directory to `out`, completely or not at all.

    Args:
        trial: The trial directory. The trial may still be running.
        out: A new or empty local folder.
        dtype: Type of the stored weights.
        tokenizer: Whether to write the tokenizer too.
        cache: Folder of token stores; None for the default.
        block: `package.module:Class` of a block that the user trusts. No other is imported.

    Raises:
        InputError: The trial has no usable checkpoint, `out` is not empty or cannot be written,
            the tokenizer cannot be found or made again, the trial's own block is not `block`, or
            the block imports something that cannot be exported.
    """
    place = _free(out)
    trained = trained_model(trial, block)
    spec, result = trained.spec, get_result(trial)
    plain = folded(trained.model)
    stock = as_stock(plain)
    model = stock if stock is not None else plain
    parameters = sum(p.numel() for p in model.parameters())
    with _whole_folder(place) as folder:
        separator = write_tokenizer(spec, folder, cache) if tokenizer else None
        if stock is None:
            model.config.auto_map = write_code(folder, block if spec.model.block else None)
        _end_at(model, separator)
        model.to(DTYPES[dtype]).save_pretrained(folder)
        card = ModelCard(
            spec=spec,
            step=trained.step,
            outcome=result["outcome"] if result else None,
            loss=_held_out_loss(trial, trained.step),
            model_class=type(model).__name__,
            stock=stock is not None,
            dtype=dtype,
            parameters=parameters,
            tokenizer=tokenizer,
        )
        (folder / "README.md").write_text(card.markdown(), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
    return Exported(
        out=str(place),
        trial=spec.id,
        model_class=card.model_class,
        trust_remote_code=stock is None,
        dtype=dtype,
        parameters=parameters,
        step=card.step,
        steps=spec.training.steps,
        outcome=card.outcome,
        val_loss=card.loss.nats if card.loss else None,
        val_step=card.loss.step if card.loss else None,
        tokenizer=tokenizer,
        files=files,
        load=loading_lines(str(place), card.stock, tokenizer),
    )


def _end_at(model: PreTrainedModel | Decoder, separator: int | None) -> None:
    """Set the separator as beginning and end of text; it follows every document in training.

    The padding token goes only into the generation configuration: in the model's, it would keep
    that token's embedding from being trained.
    """
    generation = model.generation_config
    for config in (model.config, generation):
        config.bos_token_id = config.eos_token_id = separator
    generation.pad_token_id = separator


def _held_out_loss(trial: Storage, step: int) -> Loss | None:
    """Return the newest evaluation at or before a step; None if the records are unreadable."""
    try:
        rows = read_records(trial, METRICS, ["val_loss"]).to_pylist()
    except (OSError, BrokenRecordError) as error:
        logger.warning("%s: cannot read its losses, so the card has none: %s", trial.url, error)
        return None
    measured = [
        Loss(row["val_loss"], row["step"])
        for row in rows
        if row["kind"] == "evaluation" and row["step"] <= step
    ]
    return measured[-1] if measured else None


# --- the folder ----------------------------------------------------------------------------


def _free(out: str) -> Path:
    """Return the absolute path of `out`. Raises InputError unless it is new or an empty folder."""
    if "://" in out:
        raise InputError(f"--out {out!r} must be a local folder; upload it from there")
    place = user_path("--out", out).absolute()
    if place.is_dir():
        if any(place.iterdir()):
            raise InputError(f"--out {out!r} is not empty; give a new folder")
    elif place.exists() or place.is_symlink():
        raise InputError(f"--out {out!r} is a file; give a new folder")
    return place


@contextlib.contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `place`; rename it to `place` unless an exception occurs."""
    staging: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        yield staging
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors and mkdtemp create private ones
        staging.chmod(0o755)
        os.rename(staging, place)  # fails if the folder has been filled in the meantime
    except OSError as error:
        raise InputError(
            f"--out {str(place)!r} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
