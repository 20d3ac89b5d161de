"""Hold the collapse rule against what became of the trials of finished sweeps.

    python docs/experiments/collapse.py SWEEP_DIR...

The rule (`analysis.collapse`) sees a trial's record up to each snapshot; the truth may use its end.
H is the unigram loss of the corpus, and losses are held-out ones, in nats per token.

- A trial has **collapsed** if its last loss is at least 0.97 H and is not more than 0.01 H below
  its lowest loss up to a quarter of the training earlier: it ends with no more than the
  frequencies of the tokens, and is not on its way to more. It is **impaired** if it is not
  collapsed and ends above 0.9 H: it lost its way and is finding it again. Any other is
  **healthy**. An alarm on an impaired or a healthy trial is false; the two are counted apart.
- The **loss shows** a collapse at the first evaluation from which on, to the end, every loss is
  either more than 0.2 nats above the lowest before it, or at least 0.97 H and not more than 0.01 H
  below the lowest loss up to a quarter of the training earlier. Knowing the end, this is as early
  as any rule on the loss alone with these thresholds could say so.

A collapse is late where the loss had been below 0.97 H. A lead is the steps from the alarm to where
the loss shows it, as median and range. Limits are Clopper-Pearson, 95 %. Trials that diverged or
did not end are left out and counted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.collapse import Collapse, CollapseRule, judge
from analysis.tables.sweep_tables import LAW_SITE, load_sweep
from trainers.data.batches import heldout_windows
from trainers.data.store import open_store
from trainers.heldout import unigram_loss
from trainers.spec import TrialSpec, parse_spec
from trialstore.records import SPEC
from trialstore.storage import Storage, open_storage

NOTHING_LEARNT = 0.97  # of H
IMPAIRED = 0.9  # of H
PROGRESS = 0.01  # of H, in a quarter of the training
RISE = 0.2  # nats above the lowest loss so far


@dataclass(frozen=True)
class Trial:
    """A trial's record, as the rule reads it, and what it took."""

    name: str  # its axes
    post_ln: bool
    steps: np.ndarray  # [S] of the snapshots
    hard_rank: np.ndarray  # [S, layers]
    loss_steps: np.ndarray  # [E] of the evaluations
    losses: np.ndarray  # [E] held-out, nats per token
    entropy: float  # of the unigrams, nats per token
    seconds: float

    @property
    def stuck(self) -> np.ndarray:
        """[E] whether a loss is at least 0.97 H and no progress on those of a quarter earlier."""
        quarter = self.loss_steps[-1] / 4
        earlier = [
            self.losses[self.loss_steps <= step - quarter].min(initial=np.inf)
            for step in self.loss_steps
        ]
        no_progress = self.losses > np.array(earlier) - PROGRESS * self.entropy
        return no_progress & (self.losses >= NOTHING_LEARNT * self.entropy)

    @property
    def truth(self) -> str:
        if self.stuck[-1]:
            return "collapsed"
        return "impaired" if self.losses[-1] > IMPAIRED * self.entropy else "healthy"

    @property
    def kind(self) -> str:
        """Of a collapsed trial: whether it had been below 0.97 H, or never got there."""
        return "late" if self.losses.min() < NOTHING_LEARNT * self.entropy else "early"

    @property
    def shown(self) -> int | None:
        """The step from which on every loss is high or stuck; None without one."""
        shows = self.stuck | (self.losses > np.minimum.accumulate(self.losses) + RISE)
        others = np.flatnonzero(~shows)
        first = others[-1] + 1 if len(others) else 0
        return int(self.loss_steps[first]) if first < len(shows) else None


def by_rule(
    trial: Trial, rule: CollapseRule | None = None, post_ln: bool | None = None
) -> Collapse | None:
    """What a rule says of a trial, of whose placement it may be told another."""
    return judge(
        trial.steps,
        trial.hard_rank,
        trial.loss_steps,
        trial.losses,
        trial.entropy,
        post_ln=trial.post_ln if post_ln is None else post_ln,
        rule=rule,
    )


#: What the parts of the rule are worth: the same judgement with parts of it left out.
REDUCED: dict[str, Callable[[Trial], Collapse | None]] = {
    "the rule": by_rule,
    "placement unknown": lambda trial: by_rule(trial, post_ln=False),
    "rank alone": lambda trial: by_rule(trial, CollapseRule(near_unigram=0), post_ln=True),
    "loss alone": lambda trial: by_rule(
        trial, CollapseRule(hard_rank=np.inf, fall=np.inf), post_ln=False
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP_DIR")
    options = parser.parse_args()
    everything = []
    for sweep in options.sweeps:
        name, planned, trials = finished(open_storage(sweep))
        print(f"## {name}\n\n{len(trials)} of {planned} trials trained to their end\n")
        report(trials)
        per_trial(trials)
        everything += trials
    parts = {
        "together": everything,
        "Post-LN": [trial for trial in everything if trial.post_ln],
        "other placements": [trial for trial in everything if not trial.post_ln],
    }
    for name, trials in parts.items():
        print(f"## {name}\n\n{len(trials)} trials\n")
        report(trials)


def finished(sweep: Storage) -> tuple[str, int, list[Trial]]:
    """A sweep's name, how many trials it has, and the records of those that were completed."""
    tables = load_sweep(sweep)
    ended = tables.trials[tables.trials["state"] == "completed"]
    axes = [name for name in (*tables.group_axes, "typed_multiplier", "replicate") if name in ended]
    axes = [name for name in axes if ended[name].nunique(dropna=False) > 1]
    trials: list[Trial] = []
    for _, row in ended.iterrows():
        key = f"trials/{row['id']}/{SPEC}"
        spec = parse_spec(sweep.get(key), f"{sweep.url}/{key}")
        spectra = tables.spectra[tables.spectra["id"] == row["id"]]
        spectra = spectra[spectra["site"] == LAW_SITE]
        ranks = spectra.pivot(index="step", columns="layer", values="hard_rank")
        curve = tables.curves[tables.curves["id"] == row["id"]]
        curve = curve[curve["kind"] == "evaluation"]
        # All trials of a sweep have the same tokens.
        entropy = trials[0].entropy if trials else frequencies_alone(spec)
        trials.append(
            Trial(
                name=", ".join(str(row[axis]) for axis in axes),
                post_ln=spec.model.norm == "post",
                steps=ranks.index.to_numpy(),
                hard_rank=ranks.to_numpy(),
                loss_steps=curve["step"].to_numpy(),
                losses=curve["val_loss"].to_numpy(),
                entropy=entropy,
                seconds=float(row["seconds_total"]),
            )
        )
    return tables.name, len(tables.trials), trials


def frequencies_alone(spec: TrialSpec) -> float:
    """Nats a token on the measured tokens of a model that knows token frequencies alone."""
    store = open_store(spec.source, expected=spec.data)
    windows = heldout_windows(
        store.heldout, spec.evaluation.tokens, spec.model.context, spec.data.corpus_fingerprint
    )
    return unigram_loss(store.unigram, windows[:, 1:])


def report(trials: list[Trial]) -> None:
    """What was found, missed and wrongly alarmed, and what that saves."""
    groups = {
        truth: [trial for trial in trials if trial.truth == truth]
        for truth in ("collapsed", "impaired", "healthy")
    }
    groups["impaired or healthy"] = groups["impaired"] + groups["healthy"]
    kinds = [[t for t in groups["collapsed"] if t.kind == kind] for kind in ("early", "late")]
    print("| | alarms on collapsed | impaired | healthy | impaired or healthy |", end="")
    print(" alarm at | lead where nothing had been learnt | lead where it had |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rule in REDUCED.items():
        counts = [share(sum(rule(t) is not None for t in g), len(g)) for g in groups.values()]
        alarms = [found.step for t in groups["collapsed"] if (found := rule(t))]
        row = [name, *counts, middle(alarms), *(middle(leads(kind, rule)) for kind in kinds)]
        print(f"| {' | '.join(row)} |")
    print()
    spent = sum(trial.seconds for trial in groups["collapsed"])
    if not spent:
        return
    saved = [
        trial.seconds * (1 - found.step / trial.loss_steps[-1])
        for trial in groups["collapsed"]
        if (found := by_rule(trial))
    ]
    total = sum(trial.seconds for trial in trials)
    print(
        f"Stopped at the alarm, the collapsed trials would have saved {sum(saved) / spent:.0%} of "
        f"their own time and {sum(saved) / total:.0%} of all.\n"
    )


def leads(trials: list[Trial], rule: Callable[[Trial], Collapse | None]) -> list[int]:
    """By how many steps a rule speaks before the loss shows it."""
    return [t.shown - found.step for t in trials if t.shown is not None and (found := rule(t))]


def middle(steps: list[int]) -> str:
    """Median and range."""
    return f"{np.median(steps):.0f} ({min(steps)} to {max(steps)})" if steps else ""


def share(count: int, n: int) -> str:
    """count of n, and its share with Clopper-Pearson limits."""
    if not n:
        return "none"
    limits = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    return f"{count} of {n} [{100 * limits.low:.0f}, {100 * limits.high:.0f}] %"


def per_trial(trials: list[Trial]) -> None:
    print("| trial | ends at | is | the loss shows it at | alarm at | hard rank, of its peak |")
    print("|---|---|---|---|---|---|")
    for trial in trials:
        found = by_rule(trial)
        alarm = f"{found.step} | {found.hard_rank:.1f} of {found.peak:.0f}" if found else " | "
        shown = "" if trial.shown is None else trial.shown
        print(f"| {trial.name} | {trial.losses[-1]:.2f} | {trial.truth} | {shown} | {alarm} |")
    print()


if __name__ == "__main__":
    main()
