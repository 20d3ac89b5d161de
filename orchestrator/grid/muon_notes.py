"""What Muon leaves to AdamW, said before anything is trained: a sweep that compares the two should
know which of its weights they are compared on."""

from collections.abc import Iterable, Iterator
from math import prod

from analysis.wording import plural
from trainers.accounting import parameters
from trainers.models.model_spec import ModelSpec
from trainers.spec import TrialSpec


def muon_notes(trials: Iterable[TrialSpec]) -> Iterator[str]:
    """One line for all trials that Muon trains, and one for every own block with weights that are
    neither rows nor matrices; none where there is no such trial."""
    models = [spec.model for spec in trials if spec.training.optimizer == "muon"]
    if not models:
        return
    yield (
        f"muon ({plural(len(models), 'trial')}) moves the matrices of the layers; embeddings, the "
        "head, gains and biases go to adamw"
    )
    blocks = {model.block.path: model for model in reversed(models) if model.block is not None}
    for path, model in sorted(blocks.items()):
        yield from _of_block(path, model)


def _of_block(path: str, model: ModelSpec) -> Iterator[str]:
    from trainers.check_block import left_to_adamw  # builds the block, with torch

    left = left_to_adamw(model)
    if left:
        name, shape = next(iter(left.items()))
        share = sum(map(prod, left.values())) / parameters(model).non_embedding
        yield (
            f"muon takes matrices alone: {plural(len(left), 'weight')} of {path} with three "
            f"dimensions or more, such as {name} {list(shape)}, go to adamw, {share:.0%} of the "
            "non-embedding parameters; write a matrix of each to have muon move them"
        )
