"""`--set` replaces values of a sweep file."""

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
        ("match=[none, params]", ("match",), ("none", "params")),
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


def test_match_can_be_set_by_its_older_name():
    for text in (MINIMAL, MINIMAL + "match: flops\n", MINIMAL + "hold: flops\n"):
        assert parse(text, "hold=[none, params]").match == ("none", "params")
        assert parse(text, "match=params").match == ("params",)
    message = refused(MINIMAL, "hold=none", "match=params")
    assert message == "--set match=params: the same key as --set hold=none; remove one"
    assert refused(MINIMAL + "match: none\n", "hold=x").startswith("mini.yaml, --set hold=x: hold")
    assert refused(MINIMAL + "hold: none\n", "match=x").startswith(
        "mini.yaml, --set match=x: match"
    )


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
        ("steps", "--set steps: write key=value, such as training.steps=100"),
        ("=3", "--set =3: write key=value"),
        ("stepz=3", "--set stepz=3: unknown key stepz; did you mean steps"),
        ("training.stepz=3", "unknown key training.stepz; did you mean training.steps"),
        ("trainig.steps=3", "unknown key trainig.steps; did you mean training.steps"),
        ("grid.stepz=3", "unknown key grid.stepz; did you mean grid.steps"),
        ("every=3", "several sections have the key every; write evaluation.every or spectra.every"),
        ("steps=x", "mini.yaml, --set steps=x: training.steps: 'x' should be a valid integer"),
        ("steps=[1, 2]", "for several values use grid.steps"),
        ("steps=[1", "--set steps=[1, line 1, column 3: not valid YAML"),
        ("steps=", "--set steps=: the value is missing; write key=value"),
        ("steps= ", "--set steps= : the value is missing"),
        ("lr=1", "--set lr=1: unknown key lr; did you mean learning_rate?"),
        ("training.wd=1", "unknown key training.wd; did you mean training.weight_decay?"),
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
