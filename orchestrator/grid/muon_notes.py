"""Notes on the weights that AdamW trains in a trial with Muon.

A sweep that compares the two optimisers compares them only on the weights that Muon trains.
"""

from collections.abc import Iterable, Iterator
from math import prod

from analysis.wording import plural
from trainers.accounting import parameters
from trainers.models.model_spec import ModelSpec
from trainers.spec import TrialSpec


def muon_notes(trials: Iterable[TrialSpec]) -> Iterator[str]:
    """Yield a note for all trials with Muon, and one for every own block with weights of more
    than two dimensions. Yields nothing if no trial uses Muon."""
    models = [spec.model for spec in trials if spec.training.optimizer == "muon"]
    if not models:
        return
    yield (
        f"muon ({plural(len(models), 'trial')}) trains the matrices of the layers; adamw trains "
        "embeddings, the head, gains and biases"
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
            f"muon trains only matrices: adamw trains {plural(len(left), 'weight')} of {path} with "
            f"three dimensions or more, such as {name} {list(shape)}, {share:.0%} of the "
            "non-embedding parameters; split them into matrices if muon should train them"
        )
