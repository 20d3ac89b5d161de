"""Show the progress of a running sweep: a live table on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.wording import duration
from orchestrator.ledger.ledger import Ledger, TrialStatus, trial_statuses
from trialstore.heartbeat import every
from trialstore.storage import Storage

REFRESH_S = 2.0  # seconds between two looks at the directories
LINE_EVERY_S = 15.0  # seconds between two lines, where there is no terminal


class Progress:
    """Follow the trials of a run from their directories."""

    def __init__(
        self, sweep: Storage, ledger: Ledger, flops: Mapping[str, int], console: Console
    ) -> None:
        """Start from what the ledger shows.

        Args:
            sweep: The sweep's directory.
            ledger: Its ledger at the start of the run.
            flops: Training FLOPs of each trial by id, for the estimate of the time left.
            console: Where to print.
        """
        self._sweep = sweep
        self._name = ledger.sweep
        self._trials = {trial.id: trial for trial in ledger.trials}
        self._flops = flops
        self._console = console
        self._began = time.monotonic()
        self._done_before = self._work_done()
        self._last_line = self._began
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress while the block runs, and print a last line at its end."""
        with self._live or contextlib.nullcontext(), every(REFRESH_S, self._refresh):
            yield
        self._look()
        self._console.print(self.line(), highlight=False, soft_wrap=True)

    def running(self) -> list[TrialStatus]:
        """Return the trials that had a fresh heartbeat at the last look."""
        return [trial for trial in self._trials.values() if trial.state == "running"]

    def _refresh(self) -> None:
        self._look()
        now = time.monotonic()
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._console.print(self.line(), highlight=False, soft_wrap=True)

    def _look(self) -> None:
        left = [trial for trial in self._trials.values() if not trial.over]
        cells = [(trial.id, trial.axes, trial.steps) for trial in left]
        self._trials |= {trial.id: trial for trial in trial_statuses(self._sweep, cells)}

    def line(self) -> str:
        """Return trials done, running and failed, tokens per second and time left, in one line."""
        trials = list(self._trials.values())
        over = [trial for trial in trials if trial.over]
        failed = sum(trial.state == "failed" for trial in trials)
        running = self.running()
        rate = sum(trial.tokens_per_s or 0.0 for trial in running)
        parts = [
            f"{self._name}: {len(over)}/{len(trials)} trials done",
            f"{len(running)} running",
            f"{failed} failed",
        ]
        if rate:
            parts.append(f"{rate:,.0f} tokens/s")
        left = self._seconds_left()
        if left is not None and len(over) < len(trials):
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _work_done(self) -> float:
        return sum(
            self._flops[trial.id] * (1.0 if trial.over else trial.step / max(1, trial.steps))
            for trial in self._trials.values()
        )

    def _seconds_left(self) -> float | None:
        done = self._work_done()
        fresh = done - self._done_before
        if fresh <= 0:
            return None
        left = sum(self._flops[trial.id] for trial in self._trials.values()) - done
        return left * (time.monotonic() - self._began) / fresh

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("trial", "cell", "", "step", "loss", "tokens/s", " "):
            left = column in ("trial", "cell", " ")
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for trial in self.running():
            table.add_row(
                trial.id,
                cell_name(trial.axes),
                ProgressBar(total=trial.steps, completed=trial.step, width=8),
                f"{trial.step}/{trial.steps}",
                "" if trial.loss is None else f"{trial.loss:.3f}",
                "" if trial.tokens_per_s is None else f"{trial.tokens_per_s:,.0f}",
                ", ".join(filter(None, (trial.collapse_text, trial.spike_text))),
            )
        return Group(table, Text(self.line()))


def cell_name(axes: Mapping[str, object]) -> str:
    """Return a cell's short name, such as "gpt2 pre L2 d64 D256 seed 0"."""
    shape = f"L{axes.get('depth')} d{axes.get('d_model')} D{axes.get('D')}"
    return f"{axes.get('architecture')} {axes.get('norm')} {shape} seed {axes.get('seed')}"
