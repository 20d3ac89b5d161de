"""The layout that a begun trial continues in: one rule for the driver, the attempt and the trainer.

A trial with a checkpoint continues in the layout of that checkpoint, whatever the sweep file says
by now: DeepSpeed cuts a checkpoint by worker and ZeRO stage. Two things are not the checkpoint's:

- Branch points are those of the sweep file, which may have gained or lost a shorter trial.
- A micro-batch that a retry has made smaller, after memory ran out, stays as small. The trial's
  spec.json has it, because that attempt may have ended before its first checkpoint.

A checkpoint never moves to another kind of device: `continue_from`, which the trainer calls,
refuses that.
"""

import contextlib

from pydantic import ValidationError

from trainers.spec import Layout, TrialSpec, parse_layout, parse_spec
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import BrokenRecordError, Manifest, committed_steps, read_manifest
from trialstore.storage import Storage


def continue_from(spec: TrialSpec, trial: Storage, manifest: Manifest | None) -> TrialSpec:
    """Return the trial in the layout that it continues in.

    A checkpoint keeps the layout that it was written in: workers, ZeRO stage and micro-batch. Only
    a retry after running out of memory takes its own, smaller micro-batch.

    Args:
        spec: The trial as it was asked for now.
        trial: The trial's directory, for the error message.
        manifest: The checkpoint to continue from; None for a new trial, which stays as it is.

    Raises:
        InputError: The checkpoint was made on another kind of device, or its layout is invalid.
    """
    if manifest is None or not manifest.layout:
        return spec
    place = f"{trial.url_of(records.manifest_key(manifest.step))}: layout"
    begun, asked = parse_layout(manifest.layout, place), spec.layout
    if begun.device != asked.device:
        raise InputError(
            f"trial {spec.id} was begun on {begun.device} and layout.device is now "
            f"{asked.device}; continue on {begun.device}, or train it anew in another directory"
        )
    return _in_layout(spec, begun)


def as_begun(trial: Storage, spec: TrialSpec) -> TrialSpec:
    """Return the trial in the layout that its directory says it was begun in.

    Nothing is verified: a driver needs to know how many workers a trial takes, and the trainer
    verifies the checkpoint later. A trial without a readable checkpoint, and one begun on another
    device, is returned unchanged.
    """
    begun = _begun_layout(trial)
    if begun is None or begun.device != spec.layout.device:
        return spec
    return _in_layout(spec, begun)


def as_small_as_before(trial: Storage, spec: TrialSpec) -> TrialSpec:
    """Return the trial with the micro-batch that an earlier retry needed, if there was one.

    Raises:
        InputError: The trial's spec.json cannot be read.
    """
    try:
        stored = parse_spec(trial.get(records.SPEC), trial.url_of(records.SPEC))
    except FileNotFoundError:
        return spec
    size, share = stored.layout.micro_batch, spec.sequences // spec.layout.workers
    if stored.id != spec.id or not stored.layout.retried_smaller or not size or share % size:
        return spec
    return spec.model_copy(update={"layout": _with_micro_batch(spec.layout, size)})


def _in_layout(spec: TrialSpec, begun: Layout) -> TrialSpec:
    kept = begun.model_copy(update={"branch_points": spec.layout.branch_points})
    if spec.layout.retried_smaller:
        kept = _with_micro_batch(kept, spec.layout.micro_batch)
    return spec.model_copy(update={"layout": kept})


def _begun_layout(trial: Storage) -> Layout | None:
    """The layout of the newest checkpoint that has a readable one. The trainer, too, falls back to
    an older checkpoint if the newest is damaged."""
    for step in reversed(committed_steps(trial.list("checkpoints"))):
        with contextlib.suppress(FileNotFoundError, BrokenRecordError, ValidationError):
            layout = read_manifest(trial, step).layout
            return Layout.model_validate(layout) if layout else None
    return None


def _with_micro_batch(layout: Layout, size: int | None) -> Layout:
    return layout.model_copy(update={"micro_batch": size, "retried_smaller": True})
