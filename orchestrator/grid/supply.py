"""Check that a corpus has enough tokens for the training and measurements of a sweep."""

from collections.abc import Iterator, Sequence

from analysis.settings import PASSES_WORTH_NEW
from analysis.wording import plural
from orchestrator.grid.expand import PlannedTrial
from trainers.data.batches import windows_in
from trainers.data.contents import Contents
from trainers.spec import TrialSpec


def passes(spec: TrialSpec, contents: Contents) -> float:
    """Return the passes of a trial over the training split.

    One pass is all full windows of the context length. Infinite if the split is shorter than a
    window.
    """
    context = spec.model.context
    once = windows_in(contents.total("train").tokens, context) * context
    return spec.training.steps * spec.training.batch_tokens / once if once > 0 else float("inf")


def passes_text(number: float) -> str:
    """Return a number of passes as the plan shows it: three digits, or a whole number."""
    return f"{number:.3g}" if number < 10 else f"{number:,.0f}"


def supply_notes(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Yield a note if some trial repeats tokens, up to `PASSES_WORTH_NEW` times."""
    most = max(passes(trial.spec, contents) for trial in trials)
    if 1 < most <= PASSES_WORTH_NEW:
        yield (
            f"up to {passes_text(most)} passes over the training split of "
            f"{_tokens(contents, 'train')}: tokens are repeated"
        )


def supply_warnings(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Yield warnings if a split is too small to train on, or to measure on."""
    number = max(passes(trial.spec, contents) for trial in trials)
    if number == float("inf"):
        longest = max(trial.spec.model.context for trial in trials)
        yield (
            f"a run would refuse this: the training split of {_tokens(contents, 'train')} is "
            f"shorter than one window of {longest} tokens and the target of its last; lower "
            "model.context, or give more text"
        )
    elif number > PASSES_WORTH_NEW:
        many = sum(passes(trial.spec, contents) > PASSES_WORTH_NEW for trial in trials)
        yield (
            f"{plural(many, 'trial')} go through the training split of "
            f"{_tokens(contents, 'train')} more than {PASSES_WORTH_NEW:g} times, up to "
            f"{passes_text(number)}: the loss then measures memorisation (arXiv 2305.16264); "
            "give more text, or fewer steps"
        )
    there = contents.total("heldout").tokens
    for name in ("evaluation", "spectra"):
        asked, windows = max(_asked(trial.spec, name) for trial in trials)
        if windows >= there:
            yield (
                f"a run would refuse this: {name}.tokens {asked:,} and the target of the last need "
                f"more than the {_tokens(contents, 'heldout')} of the held-out split; lower "
                f"{name}.tokens, or hold out more text (corpus.heldout)"
            )


def _asked(spec: TrialSpec, name: str) -> tuple[int, int]:
    """Held-out tokens that a trial asks for, and the tokens of the whole windows in them."""
    asked, context = getattr(spec, name).tokens, spec.model.context
    return asked, asked // context * context


def _tokens(contents: Contents, split: str) -> str:
    total = contents.total("train" if split == "train" else "heldout").tokens
    return f"{'about ' if contents.estimated else ''}{total:,} tokens"
