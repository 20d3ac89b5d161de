"""Whether a corpus has the tokens that a sweep asks of it."""

from collections.abc import Iterator, Sequence

from analysis.wording import plural
from orchestrator.grid import PlannedTrial
from trainers.data.batches import windows_in
from trainers.data.contents import Contents
from trainers.spec import TrialSpec

#: Repeating data up to about this often is worth nearly as much as new data (arXiv 2305.16264).
MANY_PASSES = 4


def passes(spec: TrialSpec, contents: Contents) -> float:
    """How often training goes through the training split; infinite where it has no window."""
    context = spec.model.context
    once = windows_in(contents.total("train").tokens, context) * context
    return spec.training.steps * spec.training.batch_tokens / once if once > 0 else float("inf")


def passes_text(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def supply_notes(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """What is repeated, where it is little enough."""
    most = max(passes(trial.spec, contents) for trial in trials)
    if 1 < most <= MANY_PASSES:
        yield (
            f"up to {passes_text(most)} passes over the training split of "
            f"{_tokens(contents, 'train')}: tokens are repeated"
        )


def supply_warnings(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Too little to train on, and too little to measure on."""
    most = max(trials, key=lambda trial: passes(trial.spec, contents))
    number = passes(most.spec, contents)
    if number > MANY_PASSES:
        many = sum(passes(trial.spec, contents) > MANY_PASSES for trial in trials)
        yield (
            f"{plural(many, 'trial')} go through the training split of "
            f"{_tokens(contents, 'train')} more than {MANY_PASSES} times, up to "
            f"{passes_text(number)}: the loss then judges memorising (arXiv 2305.16264); give "
            "more text, or fewer steps"
        )
    there = contents.total("heldout").tokens
    for name in ("evaluation", "spectra"):
        asked = max(getattr(trial.spec, name).tokens for trial in trials)
        if asked >= there:
            yield (
                f"{name}.tokens {asked:,} are more than the held-out split's "
                f"{_tokens(contents, 'heldout')}, and a run refuses that; lower them, or hold out "
                "more text (corpus.heldout)"
            )


def _tokens(contents: Contents, split: str) -> str:
    total = contents.total("train" if split == "train" else "heldout").tokens
    return f"{'about ' if contents.estimated else ''}{total:,} tokens"
