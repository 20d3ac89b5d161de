"""A trial's own record, judged by the collapse rule while it grows."""

from dataclasses import asdict

from analysis.collapse import Collapse, judge_last
from analysis.records import ALL_TOKENS, METRICS, SPECTRA, Row
from trainers.spec import TrialSpec
from trainers.writer import TrialWriter

#: The site whose ranks are judged.
SITE = "post"


class CollapseWatch:
    """Used by rank 0 alone. The trial's directory is marked as long as the rule is met."""

    def __init__(self, spec: TrialSpec, writer: TrialWriter, unigram_entropy: float) -> None:
        """With the records that the writer rests on, when a trial is resumed."""
        self._post_ln = spec.model.is_post_ln
        self._writer = writer
        self._entropy = unigram_entropy
        self._ranks: dict[int, dict[int, float]] = {}  # of every layer, by step
        self._losses: dict[int, float] = {}
        self._verdicts: dict[int, Collapse | None] = {}  # at every snapshot, in order of step
        self._take(writer.read(METRICS, ["val_loss"]).to_pylist())
        self._take(writer.read(SPECTRA, ["hard_rank"]).to_pylist())
        self._mark()

    @property
    def collapse(self) -> Collapse | None:
        """The verdict on the record so far."""
        return next(reversed(self._verdicts.values()), None)

    @property
    def since(self) -> Collapse | None:
        """Where the record began to meet the rule that it still meets."""
        found = None
        for verdict in reversed(self._verdicts.values()):
            if verdict is None:
                break
            found = verdict
        return found

    def before(self, step: int) -> Collapse | None:
        """The verdict at the last snapshot before a step: the same whenever it is asked."""
        earlier = [at for at in self._verdicts if at < step]
        return self._verdicts[earlier[-1]] if earlier else None

    def add(self, rows: list[Row]) -> None:
        """Take rows of either table, in order of step, and judge at every new snapshot."""
        before = self.since
        self._take(rows)
        if self.since != before:
            self._mark()

    def _mark(self) -> None:
        since = self.since
        self._writer.mark_collapse(None if since is None else asdict(since))

    def _take(self, rows: list[Row]) -> None:
        snapshots = []
        for row in rows:
            if row.get("val_loss") is not None:
                self._losses[row["step"]] = row["val_loss"]
            elif row.get("site") == SITE and row["bucket"] == ALL_TOKENS:
                self._ranks.setdefault(row["step"], {})[row["layer"]] = row["hard_rank"]
                snapshots.append(row["step"])
        for step in dict.fromkeys(snapshots):
            self._verdicts[step] = self._judge(step)

    def _judge(self, step: int) -> Collapse | None:
        """By what is known of the weights up to a step."""
        steps = [at for at in self._ranks if at <= step]
        evaluated = [at for at in self._losses if at <= step]
        return judge_last(
            steps,
            [[rank for _, rank in sorted(self._ranks[at].items())] for at in steps],
            evaluated,
            [self._losses[at] for at in evaluated],
            self._entropy,
            post_ln=self._post_ln,
        )
