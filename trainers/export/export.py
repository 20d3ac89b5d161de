"""A trial's model as a directory that `transformers` opens, written from its newest checkpoint.

A model that is a Llama or a GPT-2 in all but its training becomes one; every other carries its
own source (`trust_remote_code`). Either way the directory needs torch and transformers alone.
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
    """What was written where. `outcome` is None of a trial that has not ended; `val_loss` is in
    nats per token, of the weights after `val_step` updates."""

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
    load: list[str]  # two lines of Python

    @property
    def summary(self) -> str:
        """What a person wants to know of it."""
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
    """Write the model of a trial directory to `out`, a new or empty local folder. Only the
    `block` that the user has named is imported.

    The folder is there whole or not at all. Raises InputError for a trial without a usable
    checkpoint, an `out` that holds something or cannot be written, a tokenizer that cannot be had
    (unless `tokenizer` is False), and a user's block that cannot travel.
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
    """Documents begin after a separator and end with one. Padding is named for generation alone:
    a model that knows it would not train that token's embedding."""
    generation = model.generation_config
    for config in (model.config, generation):
        config.bos_token_id = config.eos_token_id = separator
    generation.pad_token_id = separator


def _held_out_loss(trial: Storage, step: int) -> Loss | None:
    """The newest evaluation at or before a step, if the records can be read."""
    try:
        rows = read_records(trial, METRICS, ["val_loss"]).to_pylist()
    except (OSError, BrokenRecordError) as error:
        logger.warning("%s: its losses cannot be read: %s", trial.url, error)
        return None
    measured = [
        Loss(row["val_loss"], row["step"])
        for row in rows
        if row["kind"] == "evaluation" and row["step"] <= step
    ]
    return measured[-1] if measured else None


# --- the folder ----------------------------------------------------------------------------


def _free(out: str) -> Path:
    """The folder as an absolute path. Raises InputError where something lies there."""
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
    """A folder beside the place that becomes it in one step, if nothing is raised."""
    staging: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        yield staging
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors and mkdtemp make theirs private
        staging.chmod(0o755)
        os.rename(staging, place)  # refused where a folder has been filled in the meantime
    except OSError as error:
        raise InputError(
            f"--out {str(place)!r} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
