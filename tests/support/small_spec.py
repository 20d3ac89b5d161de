"""A trial as small as they come, for tests that train none."""

from trainers.data.sources import DataSpec
from trainers.models.model_spec import ModelSpec
from trainers.spec import Layout, TrainingSpec, TrialSpec

CONTEXT = 32


def small_spec(sequences: int, replicate: int = 0, **layout: object) -> TrialSpec:
    """A trial whose batch is so many sequences."""
    return TrialSpec(
        model=ModelSpec(
            architecture="gpt2", norm="pre", d_model=32, head_dim=16, ffn_widths=(64,),
            context=CONTEXT, vocab_size=257,
        ),
        training=TrainingSpec(steps=1, batch_tokens=sequences * CONTEXT, learning_rate=1e-3),
        data=DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash="0" * 16),
        replicate=replicate,
        layout=Layout.model_validate(layout),
    )  # fmt: skip


def trial_laid_out(**layout: object) -> TrialSpec:
    """A trial of 32 sequences and this layout: `trial_laid_out(workers=2)`."""
    return small_spec(32, **layout)
