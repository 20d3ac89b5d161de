"""Horizons of the schedule wsd: trials that share their first updates train them once."""

from collections.abc import Iterable

import pytest
from messages import mentions

from orchestrator.grid.branches import Branch, branch_points, branches
from orchestrator.grid.expand import PlannedTrial, expand
from orchestrator.grid.plan import Plan, make_plan
from orchestrator.grid.plan_cost import START_SECONDS, measurements
from orchestrator.grid.plan_records import plan_json
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

BASE = """\
name: mini
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  steps: [100, 200, 400]
  width_multiplier: [1, 4]
  seed: [0, 1]
training:
  {schedule: wsd, warmup_steps: 10, decay_fraction: 0.2, batch_tokens: 2048, learning_rate: 1e-3}
evaluation: {every: 50}
spectra: {every: 50}
"""


def trials(*settings: str) -> list[PlannedTrial]:
    return expand(parse_sweep(BASE, "mini.yaml", settings), DATA, 512).trials


def found(planned: Iterable[PlannedTrial]) -> dict[str, Branch]:
    return branches(trial.spec for trial in planned)


def plan(*settings: str) -> Plan:
    config = parse_sweep(BASE, "mini.yaml", settings)
    return make_plan(config, expand(config, DATA, 512))


def test_shorter_trials_branch_off_the_longest_where_their_decay_begins():
    planned = trials()
    by_id = {trial.id: trial.spec for trial in planned}
    shared = found(planned)
    assert len(shared) == 8  # of 12: two widths, two seeds, two shorter horizons
    for trial_id, branch in shared.items():
        own, trunk = by_id[trial_id], by_id[branch.trunk]
        assert trunk.training.steps == 400
        assert branch.step == own.training.stable_end == 0.8 * own.training.steps
        assert (own.model, own.replicate) == (trunk.model, trunk.replicate)


def test_a_trunk_keeps_checkpoints_where_others_branch_off_and_the_id_stays():
    planned = trials()
    points = {trial.spec.training.steps: trial.spec.layout.branch_points for trial in planned}
    assert points == {400: (80, 160), 200: (), 100: ()}
    alone = trials("grid.steps=[400]")
    assert {trial.id for trial in alone} < {trial.id for trial in planned}
    assert branch_points(trial.spec for trial in alone) == {}


@pytest.mark.parametrize(
    "setting",
    [
        "schedule=cosine",
        "warmup_fraction=0.1",  # of the steps: differs from horizon to horizon
        "decay_fraction=1",  # nothing is stable; with warm-up no such trial is made
        "grid.steps=[400]",
    ],
)
def test_what_is_not_one_run_from_the_start_shares_nothing(setting):
    settings = [setting, "warmup_steps=0"] if "decay" in setting else [setting]
    assert found(trials(*settings)) == {}


def test_no_warm_up_at_all_is_the_same_warm_up():
    assert len(found(trials("warmup_fraction=0"))) == 8


def test_only_trials_that_differ_in_steps_alone_are_one_run():
    planned = trials("grid.learning_rate=[1e-3, 2e-3]", "seed=0", "width_multiplier=4")
    by_id = {trial.id: trial.spec.training.learning_rate for trial in planned}
    shared = found(planned)
    assert len(shared) == 4
    assert all(by_id[own] == by_id[branch.trunk] for own, branch in shared.items())


def test_the_order_of_trials_does_not_matter():
    planned = trials()
    assert found(planned) == found(reversed(planned))


def test_shared_updates_are_counted_once():
    made = plan("seed=0", "width_multiplier=4")
    spec = made.rows[0].trial.spec
    per_update = made.rows[0].flops_per_token * spec.training.batch_tokens
    assert made.totals.flops == per_update * (400 + (200 - 160) + (100 - 80))
    assert [row.flops // per_update for row in made.rows] == [400, 40, 20]
    assert [row.tokens // spec.training.batch_tokens for row in made.rows] == [400, 200, 100]
    whole = plan("seed=0", "width_multiplier=4", "schedule=cosine").rows
    for row, alone in zip(made.rows[1:], whole[1:], strict=True):
        assert START_SECONDS < row.seconds < START_SECONDS + (alone.seconds - START_SECONDS) / 2


@pytest.mark.parametrize(
    ("steps", "every", "begin", "count"),
    [(100, 50, 0, 3), (100, 50, 80, 1), (100, 50, 40, 2), (100, 30, 60, 2), (100, 30, 0, 5)],
)
def test_measurements_are_at_every_so_many_updates_and_at_the_end(steps, every, begin, count):
    at = {0, *range(0, steps + 1, every), steps}
    assert measurements(steps, every, begin) == len({s for s in at if s > begin or begin == 0})
    assert measurements(steps, every, begin) == count


def test_the_plan_says_what_is_shared():
    made = plan()

    (note,) = made.notes
    assert mentions(note, "8 trials ... 960 updates")
    content = plan_json(made)
    steps = {trial["axes"]["steps"]: trial["branch"] for trial in content["trials"]}
    assert steps[400] is None
    assert steps[100]["step"] == 80
    assert steps[100]["trunk"] in {trial["id"] for trial in content["trials"]}


def test_horizons_that_share_nothing_are_warned_of():
    assert any("share no updates" in text for text in plan("warmup_fraction=0.1").warnings)
    assert not any("share no updates" in text for text in plan().warnings)
    assert not any("share no updates" in text for text in plan("schedule=cosine").warnings)
