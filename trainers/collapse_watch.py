"""The collapse rule of `analysis.collapse`, applied to a trial's records while they grow."""

from bisect import bisect_right
from dataclasses import asdict

import numpy as np

from analysis.collapse import Collapse, judge_last
from trainers.durable.writer import TrialWriter
from trainers.spec import TrialSpec
from trialstore.records import ALL_TOKENS, METRICS, SPECTRA, Row

#: The site whose soft ranks are judged.
SITE = "post"


class CollapseWatch:
    """Judges at every snapshot whether a trial's layers have collapsed.

    Only rank 0 has one. The trial's directory is marked for as long as the rule is met.
    """

    def __init__(self, spec: TrialSpec, writer: TrialWriter, unigram_loss: float) -> None:
        """Judge the records that the trial resumes from, if any.

        Args:
            spec: The trial.
            writer: Reads those records, and marks the directory.
            unigram_loss: Loss of a unigram model on the measured tokens, in nats a token.
        """
        self._post_ln = spec.model.is_post_ln
        self._writer = writer
        self._unigram_loss = unigram_loss
        self._steps: list[int] = []  # of snapshots
        self._soft_ranks = np.empty((0, spec.model.depth))
        self._evaluated: list[int] = []
        self._losses: list[float] = []
        self._verdicts: dict[int, Collapse | None] = {}  # at every snapshot, in order of step
        self._take(writer.read(METRICS, ["val_loss"]).to_pylist())
        self._take(writer.read(SPECTRA, ["hard_rank"]).to_pylist())
        self._mark()

    @property
    def since(self) -> Collapse | None:
        """The snapshot since which the rule has been met; None if it is not met now."""
        found = None
        for verdict in reversed(self._verdicts.values()):
            if verdict is None:
                break
            found = verdict
        return found

    def before(self, step: int) -> Collapse | None:
        """Return the verdict at the last snapshot before `step`; later rows do not change it."""
        earlier = [at for at in self._verdicts if at < step]
        return self._verdicts[earlier[-1]] if earlier else None

    def add(self, rows: list[Row]) -> None:
        """Take rows of either table, in order of step. Judge at every new snapshot."""
        before = self.since
        self._take(rows)
        if self.since != before:
            self._mark()

    def _mark(self) -> None:
        since = self.since
        self._writer.mark_collapse(None if since is None else asdict(since))

    def _take(self, rows: list[Row]) -> None:
        found: dict[int, dict[int, float]] = {}
        for row in rows:
            if row.get("val_loss") is not None:
                self._evaluated.append(row["step"])
                self._losses.append(row["val_loss"])
            elif row.get("site") == SITE and row["bucket"] == ALL_TOKENS:
                found.setdefault(row["step"], {})[row["layer"]] = row["hard_rank"]
        for step, ranks in found.items():
            self._steps.append(step)
            layers = [rank for _, rank in sorted(ranks.items())]
            self._soft_ranks = np.vstack([self._soft_ranks, layers])
            self._verdicts[step] = self._judge(step)

    def _judge(self, step: int) -> Collapse | None:
        """The verdict at a snapshot, without the evaluations after it: spectra may come later."""
        known = bisect_right(self._evaluated, step)
        return judge_last(
            self._steps,
            self._soft_ranks,
            self._evaluated[:known],
            self._losses[:known],
            self._unigram_loss,
            post_ln=self._post_ln,
        )
