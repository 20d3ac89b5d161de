"""Train one trial without a scheduler or a tracking server: python -m trainers SPEC.json."""

import _widthlab

_widthlab.require_packages("trainers")

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from trainers.data.paths import user_path
from trainers.spec import parse_spec, refuse_other_semantics, refuse_unnamed_block
from trialstore.errors import BAD_INPUT, InputError
from trialstore.storage import LocalStorage, Storage, open_storage

#: Exit code of a trial that was stopped and can continue; 0 is done, 1 any other error.
STOPPED = 3


class ConsoleLog:
    """A `trainers.train.Log` that prints to stderr, at most one line of progress per `EVERY_S`."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._last = time.monotonic()

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        verb = "continues after" if step else "begins at"
        print(f"trial {trial_id}, attempt {attempt}: {verb} step {step}/{steps}", file=sys.stderr)

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        now = time.monotonic()
        if now - self._last >= self.EVERY_S or step == steps:
            self._last = now
            print(
                f"step {step}/{steps}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s",
                file=sys.stderr,
            )

    def checkpointed(self, step: int) -> None:
        print(f"checkpoint at step {step}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Train the trial that the command line names.

    Args:
        arguments: The command line; None for `sys.argv`.

    Returns:
        The exit code: 0 done, 2 bad input, 3 stopped on request and to be continued.

    Raises:
        Exception: Whatever ended the attempt; the process then exits with code 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m trainers",
        description="Train one trial. For a trial of several workers, use torchrun with as many "
        "processes as layout.workers in the spec. The same command continues a trial.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 stopped on request after a checkpoint",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="the trial's spec")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the trial's directory, a path or a URL"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="folder of token stores (default: $WIDTHLAB_CACHE, else ~/.cache/widthlab)",
    )  # fmt: skip
    parser.add_argument(
        "--block", metavar="MODULE:CLASS",
        help="confirm your own block that the spec names: importing it runs its code",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    stop = _asked_to_stop()
    try:
        try:
            spec = parse_spec(options.spec.read_bytes(), str(options.spec))
        except OSError as error:
            raise InputError(f"{options.spec} cannot be read: {error.strerror}") from error
        refuse_other_semantics(spec, str(options.spec))
        refuse_unnamed_block(spec, options.block, str(options.spec))
        trial = _open_trial(options.out)
        # The heavy imports wait until the input is known to be good.
        from trainers.train import train

        end = train(spec, trial, ConsoleLog(), options.cache, stop)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if end.outcome is None:
        print(f"stopped at step {end.step}; the same command continues", file=sys.stderr)
        return STOPPED
    print(f"{end.outcome} at step {end.step}: {options.out}", file=sys.stderr)
    return 0


def _asked_to_stop() -> threading.Event:
    """Return an event that the first SIGTERM sets: the trial then writes a checkpoint and ends.

    Later SIGTERMs are ignored. Under Slurm a rank gets one from the system and one from torchrun,
    and a handler that interrupts `Event.set` and calls it again would deadlock.
    """
    stop = threading.Event()

    def ask(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    return stop


def _open_trial(out: str) -> Storage:
    """Open the trial's directory. Raises InputError if nothing can be written there."""
    if "://" not in out:
        user_path("--out", out)
    trial = open_storage(out)
    if isinstance(trial, LocalStorage):
        try:
            trial.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {out!r} cannot be made a folder: {error.strerror}; give another"
            ) from error
        if not os.access(trial.root, os.W_OK | os.X_OK):
            raise InputError(f"--out {out!r}: the folder cannot be written to; give another")
    return trial


def _leave(code: int) -> NoReturn:
    """End this rank, together with the others if all have come to the same end."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Skip the interpreter's shutdown, in which gloo ranks may abort. All data are durable.
        import torch.distributed as dist

        # If the input is bad on this rank only, the others wait for it in another collective: a
        # barrier here would deadlock.
        if code != BAD_INPUT and dist.is_initialized():
            dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
