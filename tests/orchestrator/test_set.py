"""What `--set` may put in the place of what a sweep file says."""

import pytest
from messages import mentions
from mini_sweep import MINIMAL, parse, refused, replaced

from trainers.data.sources import TextFiles


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("training.steps=7", ("training", "steps"), 7),
        ("steps=7", ("training", "steps"), 7),
        ("learning_rate=3e-4", ("training", "learning_rate"), 0.0003),
        ("name=other", ("name",), "other"),
        ("hold=[none, params]", ("hold",), ("none", "params")),
        ("workers=2", ("resources", "workers"), 2),
        ("micro_batch=null", ("resources", "micro_batch"), None),
        ("spectra.sites=[pre, post]", ("spectra", "sites"), ("pre", "post")),
        ("tolerance_nats=0.02", ("analysis", "tolerance_nats"), 0.02),
        ("vocab_size=1024", ("tokenizer", "vocab_size"), 1024),
    ],
)
def test_an_override_sets_one_key(override, where, value):
    found = parse(MINIMAL + "tokenizer: {kind: bpe}\n", override)
    for name in where:
        found = getattr(found, name)
    assert found == value


def test_an_override_can_replace_a_whole_section():
    assert parse(MINIMAL, "corpus={kind: text, paths: [b.txt]}").corpus == TextFiles(
        paths=["b.txt"]
    )


def test_a_bare_name_that_is_on_the_grid_means_the_axis():
    assert parse(MINIMAL, "width_multiplier=[1, 8]").grid["width_multiplier"] == (1.0, 8.0)
    assert parse(replaced("grid:", "grid:\n  seed: [0, 1]"), "seed=2").grid["seed"] == (2,)


def test_an_axis_that_is_set_takes_the_place_of_the_section():
    config = parse(MINIMAL, "grid.steps=[10, 20]")
    assert config.grid["steps"] == (10, 20)
    text = replaced("  steps: 100\n", "").replace("grid:", "grid:\n  steps: [10, 20]")
    assert parse(text, "training.steps=5").grid.keys() == {"width_multiplier", "seed"}


def test_setting_d_itself_takes_the_place_of_multipliers():
    config = parse(MINIMAL, "ffn_width=[64, 128]")
    assert config.grid == {"ffn_width": (64, 128), "seed": (0,)}


def test_setting_one_way_of_saying_the_warm_up_takes_the_other_away():
    text = MINIMAL + "  warmup_fraction: 0.2\n"
    config = parse(text, "warmup_steps=10")
    assert (config.training.warmup_steps, config.training.warmup_fraction) == (10, 0.1)
    again = parse(text, "grid.warmup_steps=[10, 20]")
    assert again.grid["warmup_steps"] == (10, 20)
    message = refused(text, "warmup_steps=10", "warmup_fraction=0.3")
    assert "warmup_steps" in message
    assert "warmup_fraction" in message


@pytest.mark.parametrize("again", ["steps=7", "training.steps=7", "grid.steps=[7]"])
def test_one_key_cannot_be_set_twice(again):
    message = refused(MINIMAL, "steps=5", again)
    assert mentions(message, f"--set {again}: ... --set steps=5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set steps: ... key=value"),
        ("=3", "--set =3: ... key=value"),
        ("stepz=3", "--set stepz=3: ... stepz ... steps"),
        ("training.stepz=3", "--set training.stepz=3: ... training.stepz ... training.steps"),
        ("trainig.steps=3", "--set trainig.steps=3: ... trainig.steps ... training.steps"),
        ("grid.stepz=3", "--set grid.stepz=3: ... grid.stepz ... grid.steps"),
        ("every=3", "every ... evaluation.every ... spectra.every"),
        ("steps=x", "mini.yaml, --set steps=x: training.steps: 'x' ... integer"),
        ("steps=[1, 2]", "training.steps: ... grid.steps"),
        ("steps=[1", "--set steps=[1, line 1, column 3: "),
        ("steps=", "--set steps=: ... key=value"),
        ("steps= ", "--set steps= : ... key=value"),
        ("lr=1", "--set lr=1: ... lr ... learning_rate?"),
        ("training.wd=1", "training.wd ... training.weight_decay?"),
        (
            "zzz=1",
            "zzz ... SECTION.KEY ... corpus ... tokenizer ... model ... training ... "
            "evaluation ... spectra ... resources ... analysis ... grid",
        ),
        ("grid=3", "mini.yaml, --set grid=3: grid: 3"),
        ("grid.seed=[]", "mini.yaml, --set grid.seed=[]: grid.seed: "),
    ],
)
def test_a_mistaken_override_is_named_as_it_was_typed(override, message):
    assert mentions(refused(MINIMAL, override), message)
