"""Read a trial's model from its newest checkpoint: float32, on the CPU, without an engine.

DeepSpeed splits the float32 master weights over the files of the ranks, differently at each ZeRO
stage. This file joins them for every stage, world size and precision.
Checkpoints are data: loading them executes no code.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers import check_block
from trainers.durable.checkpoint import DamagedCheckpointError, fetch, newest_intact
from trainers.durable.scratch import scratch_folder
from trainers.engine.engine import import_deepspeed
from trainers.models.build import configuration
from trainers.models.decoder import Decoder
from trainers.spec import TrialSpec, refuse_unnamed_block
from trainers.train import read_spec
from trialstore.errors import InputError
from trialstore.records import SPEC, get_result
from trialstore.storage import Storage

#: Of the stages that do not cut the model itself.
MODEL_STATES = "mp_rank_00_model_states.pt"
#: What a file that is no checkpoint of this trial makes torch, pickle and DeepSpeed raise.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, OSError, ValueError, LookupError, TypeError,
    AttributeError, EOFError,
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The model of a trial after `step` updates, in evaluation mode."""

    spec: TrialSpec
    step: int
    model: Decoder


def trained_model(trial: Storage, block: str | None = None) -> Trained:
    """Read the newest usable checkpoint of a trial directory.

    Args:
        trial: The trial directory. The trial may still be running.
        block: `package.module:Class` of a block that the user trusts. No other is imported.

    Raises:
        InputError: There is no checkpoint, it cannot be read, it does not fit the trial's model,
            the trial's own block is not `block`, or the block's source has changed since the
            trial was planned.
    """
    spec = read_spec(trial)
    refuse_unnamed_block(spec, block, trial.url_of(SPEC))
    if spec.model.block is not None:
        check_block.check(spec.model.block)
    manifest = newest_intact(trial)
    if manifest is None:
        result = get_result(trial)
        why = (
            f"it {result['outcome']} at step {result['step']}, before its first one"
            if result
            else "train the trial at least to its first one"
        )
        raise InputError(f"{trial.url} has no checkpoint: {why}")
    model = Decoder(configuration(spec.model))
    with scratch_folder() as folder:
        try:
            fetch(trial, manifest, folder)
        except DamagedCheckpointError as error:  # since it was found intact
            raise InputError(f"{error}; try again") from error
        except FileNotFoundError as error:  # newer ones came while it was being copied
            raise InputError(
                f"{trial.url} is training and has just dropped its checkpoint of step "
                f"{manifest.step}; try again, or when it has ended"
            ) from error
        try:
            model.load_state_dict(read_weights(folder))
        except UNREADABLE as error:
            raise InputError(
                f"{trial.url}: the checkpoint of step {manifest.step} does not hold the weights "
                f"of trial {spec.id}: {type(error).__name__}: {_first_line(error)}"
            ) from error
    return Trained(spec, manifest.step, model.eval())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the parameters, in float32, and buffers in a checkpoint's files, by name.

    Tensors may be memory-mapped: keep the files as long as the tensors. DeepSpeed's own converter
    cannot read bf16 checkpoints of stage 1 and would execute code in the files.

    Args:
        folder: A local folder with the files of all ranks.

    Raises:
        Exception: Any of UNREADABLE, if the files are not a checkpoint of the expected form.
    """
    import_deepspeed("cpu")  # which allows what its files hold beside tensors, and no more
    ranks = sorted(folder.glob("*_optim_states.pt"), key=_rank)
    if not ranks:  # stage 0: whole, and in float32 in bf16 training too
        weights: dict[str, Tensor] = _load(folder / MODEL_STATES)["module"]
        return weights
    model = _load(min(folder.glob("*_model_states.pt"), key=_rank))
    optimizers = [_load(path)["optimizer_state_dict"] for path in ranks]
    groups: list[dict[str, torch.Size]] = model["param_shapes"]
    if "fp32_flat_groups" in optimizers[0]:
        flat = [torch.cat([part.flatten() for part in o["fp32_flat_groups"]]) for o in optimizers]
        weights = _cut_by_parameter(
            flat, {n: shape for group in groups for n, shape in group.items()}
        )
    else:
        weights = {}
        for index, shapes in enumerate(groups):
            parts = [o["single_partition_of_fp32_groups"][index] for o in optimizers]
            gaps = optimizers[0].get("param_alignment_paddings")
            weights |= _cut_by_group(torch.cat(parts), shapes, gaps[index] if gaps else None)
    weights |= {name: model["module"][name] for name in model["buffer_names"]}
    return weights | {name: weights[held] for name, held in model["shared_params"].items()}


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _rank(path: Path) -> int:
    """Return the data-parallel rank in a name: zero_pp_rank_12_mp_rank_00_optim_states.pt."""
    found = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _cut_by_group(
    flat: Tensor, shapes: dict[str, torch.Size], gaps: list[int] | None
) -> dict[str, Tensor]:
    """Cut one flat group of stage 1 or 2 into its parameters.

    `gaps` counts the padding elements after each parameter.
    """
    weights, start = {}, 0
    for (name, shape), gap in zip(shapes.items(), gaps or [0] * len(shapes), strict=True):
        weights[name] = flat[start : start + shape.numel()].view(shape)
        start += shape.numel() + gap
    return weights


def _cut_by_parameter(flat: list[Tensor], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Join the parameters of stage 3: ranks have equal shares of each, the last ones padded."""
    weights, start = {}, 0
    for name, shape in shapes.items():
        share = -(-shape.numel() // len(flat))
        whole = torch.cat([of_rank[start : start + share] for of_rank in flat])
        weights[name] = whole[: shape.numel()].view(shape)
        start += share
    return weights


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
