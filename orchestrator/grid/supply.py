"""Whether a corpus has the tokens that a sweep asks of it."""

from collections.abc import Iterator, Sequence

from analysis.settings import PASSES_WORTH_NEW
from analysis.wording import plural
from orchestrator.grid.expand import PlannedTrial
from trainers.data.batches import windows_in
from trainers.data.contents import Contents
from trainers.spec import TrialSpec


def passes(spec: TrialSpec, contents: Contents) -> float:
    """How often training goes through the training split; infinite where it has no window."""
    context = spec.model.context
    once = windows_in(contents.total("train").tokens, context) * context
    return spec.training.steps * spec.training.batch_tokens / once if once > 0 else float("inf")


def passes_text(number: float) -> str:
    return f"{number:.3g}" if number < 10 else f"{number:,.0f}"


def supply_notes(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """What is repeated, where it is little enough."""
    most = max(passes(trial.spec, contents) for trial in trials)
    if 1 < most <= PASSES_WORTH_NEW:
        yield (
            f"up to {passes_text(most)} passes over the training split of "
            f"{_tokens(contents, 'train')}: tokens are repeated"
        )


def supply_warnings(contents: Contents, trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Too little to train on, and too little to measure on."""
    number = max(passes(trial.spec, contents) for trial in trials)
    if number == float("inf"):
        longest = max(trial.spec.model.context for trial in trials)
        yield (
            f"the training split of {_tokens(contents, 'train')} has no window of {longest} tokens "
            "and a target for the last, and a run refuses that; lower model.context, or give more "
            "text"
        )
    elif number > PASSES_WORTH_NEW:
        many = sum(passes(trial.spec, contents) > PASSES_WORTH_NEW for trial in trials)
        yield (
            f"{plural(many, 'trial')} go through the training split of "
            f"{_tokens(contents, 'train')} more than {PASSES_WORTH_NEW:g} times, up to "
            f"{passes_text(number)}: the loss then judges memorising (arXiv 2305.16264); give "
            "more text, or fewer steps"
        )
    there = contents.total("heldout").tokens
    for name in ("evaluation", "spectra"):
        asked, windows = max(_asked(trial.spec, name) for trial in trials)
        if windows >= there:
            yield (
                f"{name}.tokens {asked:,} and the target of the last are more than the held-out "
                f"split's {_tokens(contents, 'heldout')}, and a run refuses that; lower them, or "
                "hold out more text (corpus.heldout)"
            )


def _asked(spec: TrialSpec, name: str) -> tuple[int, int]:
    """Held-out tokens that are asked for, and those of the whole windows that they make."""
    asked, context = getattr(spec, name).tokens, spec.model.context
    return asked, asked // context * context


def _tokens(contents: Contents, split: str) -> str:
    total = contents.total("train" if split == "train" else "heldout").tokens
    return f"{'about ' if contents.estimated else ''}{total:,} tokens"
