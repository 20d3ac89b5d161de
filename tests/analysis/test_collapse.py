"""The collapse rule: what it accuses, what it lets be, and that it never needs to take back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.collapse import Collapse, CollapseRule, judge, judge_last

UNIGRAMS = 5.33  # nats per token
STEPS = np.arange(0, 201, 10)

# Four trials of docs/experiments/collapse-fit.yaml: the lowest hard rank of any layer and the
# held-out loss, every ten steps from 0 to 200. LLaMA, depth 6.
NEVER_LEARNT = (  # Post-LN, 4e-2, 2.67x
    "55.8 2.6 1.1 1.1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "6.25 5.49 5.83 5.68 5.52 5.40 5.39 5.38 5.39 5.36 5.38 "
    "5.39 5.35 5.35 5.35 5.35 5.35 5.34 5.34 5.34 5.34",
)
LATE = (  # Post-LN, 4e-2, 8x, warm-up over half of the training
    "78.6 21.3 7.7 10.5 16.4 18.5 18.6 11.2 7.0 1.1 1.1 1.2 1.2 1.3 1.5 1.6 1.6 1.6 1.7 1.6 1.6",
    "6.25 5.73 4.90 4.52 4.50 4.55 4.78 5.17 5.40 5.47 5.45 "
    "5.39 5.36 5.36 5.36 5.36 5.36 5.35 5.34 5.35 5.34",
)
SLOW_START = (  # Post-LN, 1e-3, 8x, the same warm-up
    "78.6 78.5 76.2 68.7 52.1 27.0 21.0 9.4 3.8 5.2 5.1 5.8 5.6 6.2 6.9 7.0 8.6 8.0 8.1 7.6 7.1",
    "6.25 6.24 6.22 6.18 6.12 5.93 5.72 5.52 5.36 5.22 5.10 "
    "4.98 4.88 4.77 4.70 4.65 4.61 4.57 4.55 4.54 4.53",
)
LOST_AND_FOUND = (  # Pre-LN, 1e-2, 2.67x
    "62.2 3.7 1.1 1.1 1.0 1.1 1.5 1.5 1.9 2.0 2.3 2.4 1.7 1.6 2.6 2.9 3.0 3.1 3.5 3.3 3.7",
    "6.25 5.51 5.44 5.33 5.31 5.24 5.16 5.11 5.05 5.00 4.94 "
    "4.92 4.80 4.76 4.75 4.71 4.69 4.65 4.62 4.61 4.59",
)


def rule_on(ranks, losses, *, post_ln, steps=STEPS, entropy=UNIGRAMS, rule=None) -> Collapse | None:
    """The rule on a record with an evaluation at every snapshot and two layers, one healthy."""
    ranks, losses = np.asarray(ranks, float), np.asarray(losses, float)
    layers = np.stack([np.full_like(ranks, 100.0), ranks], axis=1)
    return judge(steps, layers, steps, losses, entropy, post_ln=post_ln, rule=rule)


# --- recorded trials -----------------------------------------------------------------------


def recorded(trial: tuple[str, str]) -> list[list[str]]:
    """Ranks and losses [S] of a trial above."""
    return [series.split() for series in trial]


def test_a_post_ln_model_that_never_learns_is_found_before_its_loss_has_settled():
    found = rule_on(*recorded(NEVER_LEARNT), post_ln=True)
    assert found is not None
    assert found.step == 30
    assert found.loss > 5.6  # and 5.34 at the end: nothing of the plateau is to be seen yet
    assert (found.layer, found.hard_rank, found.peak) == (1, 1.1, 55.8)


def test_a_model_that_forgets_what_it_learnt_is_found():
    found = rule_on(*recorded(LATE), post_ln=True)
    assert found is not None
    assert found.step == 110


def test_without_knowing_the_placement_the_same_trials_are_found_later():
    early = rule_on(*recorded(NEVER_LEARNT), post_ln=False)
    late = rule_on(*recorded(LATE), post_ln=False)
    assert early is not None
    assert late is not None
    assert early.step > 30
    assert late.step >= 110


def test_a_loss_from_before_the_rank_fell_says_nothing():
    """Snapshots more often than evaluations: the last loss may be that of an untrained model."""
    layers = [[20.0], [3.0], [3.0], [3.0], [3.0]]
    steps = [0, 10, 20, 30, 40]

    def judged(loss_steps, losses):
        return judge(steps, layers, loss_steps, losses, UNIGRAMS, post_ln=True)

    assert judged([0], [5.55]) is None
    assert judged([0, 30], [5.55, 4.6]) is None
    found = judged([0, 30], [5.55, 5.4])
    assert found is not None
    assert found.step == 30


@pytest.mark.parametrize("post_ln", [True, False])
def test_a_slow_start_is_let_be(post_ln):
    assert rule_on(*recorded(SLOW_START), post_ln=post_ln) is None


def test_a_pre_ln_model_at_rank_one_is_let_be_while_it_learns():
    assert rule_on(*recorded(LOST_AND_FOUND), post_ln=False) is None
    # The rank and the height of the loss would accuse it: this is why the placement matters.
    assert rule_on(*recorded(LOST_AND_FOUND), post_ln=True) is not None


# --- made records --------------------------------------------------------------------------


def collapsed_from(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and losses [S] of a model that is untrained up to a step and collapsed from there."""
    return np.where(STEPS < step, 60.0, 1.0), np.where(STEPS < step, 6.2, 5.36)


@pytest.mark.parametrize("post_ln", [True, False])
def test_a_small_rank_of_a_model_that_has_learnt_is_no_collapse(post_ln):
    ranks = np.where(STEPS == 0, 40.0, 1.5)
    assert rule_on(ranks, np.where(STEPS == 0, 6.2, 3.6), post_ln=post_ln) is None


@pytest.mark.parametrize("post_ln", [True, False])
def test_one_or_two_bad_snapshots_decide_nothing(post_ln):
    ranks, losses = np.full(len(STEPS), 60.0), np.full(len(STEPS), 5.36)
    ranks[[8, 9, 13]] = 1.0
    assert rule_on(ranks, losses, post_ln=post_ln) is None
    ranks[10] = 1.0
    found = rule_on(ranks, losses, post_ln=post_ln)
    assert found is not None
    assert found.step == STEPS[10]


@pytest.mark.parametrize("post_ln", [True, False])
def test_one_good_snapshot_of_a_collapsed_model_delays_the_verdict(post_ln):
    ranks, losses = collapsed_from(50)
    first = rule_on(ranks, losses, post_ln=post_ln)
    assert first is not None
    ranks[STEPS == first.step] = 20.0
    later = rule_on(ranks, losses, post_ln=post_ln)
    assert later is not None
    assert later.step == first.step + 30


def test_snapshots_at_every_step_must_agree_over_a_tenth_of_the_training():
    steps = np.arange(201)
    ranks, losses = np.where(steps < 150, 60.0, 1.0), np.full(201, 5.36)
    found = rule_on(ranks, losses, post_ln=True, steps=steps)
    assert found is not None
    assert found.step == 166  # the first whose last tenth, from 149.4 on, is low throughout


def test_untrained_weights_are_never_accused():
    assert rule_on([1.0], [6.2], post_ln=True, steps=[0]) is None
    assert rule_on([60, 1, 1], [6.2] * 3, post_ln=True, steps=[0, 10, 20]) is None
    assert rule_on([60, 1, 1, 1], [6.2] * 4, post_ln=True, steps=[0, 10, 20, 30]) is not None


def test_in_a_narrow_network_an_ordinary_rank_is_no_collapse():
    losses = np.where(STEPS == 0, 6.2, 5.36)
    ordinary = np.where(STEPS == 0, 6.0, 3.0)  # of D = 8
    assert rule_on(ordinary, losses, post_ln=True) is None
    assert rule_on(np.where(STEPS == 0, 6.0, 1.2), losses, post_ln=True) is not None


def test_one_collapsed_layer_is_enough_and_is_named():
    ranks = np.full((len(STEPS), 4), 60.0)
    ranks[1:, 2] = 1.0
    losses = np.full(len(STEPS), 5.36)
    found = judge(STEPS, ranks, STEPS, losses, UNIGRAMS, post_ln=True)
    assert found is not None
    assert found.layer == 2
    assert "hard rank 1.0 in layer 2" in found.reason
    assert "loss 5.36" in found.reason


def test_thresholds_are_the_callers_to_change():
    ranks, losses = collapsed_from(50)
    patient = rule_on(ranks, losses, post_ln=True, rule=CollapseRule(snapshots=6))
    usual = rule_on(ranks, losses, post_ln=True)
    assert usual is not None
    assert patient is not None
    assert patient.step == usual.step + 30
    assert rule_on(ranks, losses, post_ln=True, rule=CollapseRule(hard_rank=0.5)) is None


def test_evaluations_that_are_not_finite_say_nothing():
    ranks, losses = collapsed_from(50)
    whole = rule_on(ranks, losses, post_ln=False)
    losses[-4:] = np.nan
    assert rule_on(ranks, losses, post_ln=False) == whole
    assert rule_on(ranks, np.full(len(STEPS), np.inf), post_ln=True) is None


def test_where_evaluations_are_rarer_than_snapshots_the_rule_waits_for_one():
    ranks, losses = collapsed_from(50)
    layers, rare = ranks[:, None], STEPS % 40 == 0
    found = judge(STEPS, layers, STEPS[rare], losses[rare], UNIGRAMS, post_ln=True)
    assert found is not None
    assert found.step == 80  # the evaluation at 40 is from before the rank fell
    assert found.loss == losses[STEPS == 80]


def test_without_earlier_evaluations_there_is_no_progress_to_miss():
    ranks, losses = collapsed_from(50)
    rare = STEPS % 100 == 0
    assert judge(STEPS, ranks[:, None], STEPS[rare], losses[rare], UNIGRAMS, post_ln=False) is None
    assert judge(STEPS, ranks[:, None], [], [], UNIGRAMS, post_ln=True) is None


def test_an_evaluation_after_the_last_snapshot_is_not_yet_known():
    ranks, losses = collapsed_from(50)
    losses[-1] = 3.6
    known = STEPS < 200
    found = judge_last(STEPS[known], ranks[known, None], STEPS, losses, UNIGRAMS, post_ln=True)
    assert found is not None
    assert found.loss == 5.36


# --- for every record ----------------------------------------------------------------------

records = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([1.0, 2.0, 3.4, 8.0, 60.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([3.6, 5.1, 5.2, 5.32, 5.34, 5.36, 6.2]), min_size=n, max_size=n),
        st.booleans(),
    )
)


@given(records)
@settings(deadline=None)
def test_a_verdict_rests_on_the_past_alone_and_is_the_training_loops(record):
    ranks, losses, post_ln = record
    steps = 10 * np.arange(len(ranks))
    layers = np.array(ranks)[:, None]
    found = judge(steps, layers, steps, losses, UNIGRAMS, post_ln=post_ln)
    verdicts = [
        judge_last(steps[:n], layers[:n], steps[:n], losses[:n], UNIGRAMS, post_ln=post_ln)
        for n in range(1, len(steps) + 1)
    ]
    assert found == next((verdict for verdict in verdicts if verdict), None)
    for n in range(1, len(steps) + 1):
        so_far = judge(steps[:n], layers[:n], steps[:n], losses[:n], UNIGRAMS, post_ln=post_ln)
        assert so_far == (found if found and found.step <= steps[n - 1] else None)


@given(records, st.floats(0.1, 10), st.integers(1, 50))
@settings(deadline=None)
def test_neither_the_unit_of_the_loss_nor_that_of_the_steps_matters(record, nats, pace):
    ranks, losses, post_ln = record
    steps = 10 * np.arange(len(ranks))
    # An entropy apart from every loss by more than rounding.
    found = rule_on(ranks, losses, post_ln=post_ln, steps=steps, entropy=5.331)
    scaled = rule_on(
        ranks, nats * np.array(losses), post_ln=post_ln, steps=pace * steps, entropy=nats * 5.331
    )
    assert (found and found.step * pace) == (scaled and scaled.step)


@given(records)
@settings(deadline=None)
def test_whoever_is_accused_as_pre_ln_is_accused_as_post_ln_no_later(record):
    ranks, losses, _ = record
    steps = 10 * np.arange(len(ranks))
    cautious = rule_on(ranks, losses, post_ln=False, steps=steps)
    bold = rule_on(ranks, losses, post_ln=True, steps=steps)
    assert cautious is None or (bold is not None and bold.step <= cautious.step)


# --- bad arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": [0, 10]}, r"steps .*\(2,\).* hard_rank .*\(3, 1\)"),
        ({"hard_rank": [1.0, 1.0, 1.0]}, r"expected \[n\] and \[n, layers\]"),
        ({"losses": [6.0]}, r"loss_steps .*\(3,\).* losses .*\(1,\)"),
        ({"steps": [0, 20, 10]}, "^steps "),
        ({"loss_steps": [0, 10, 10]}, "^loss_steps "),
        ({"hard_rank": [[60.0], [np.nan], [1.0]]}, "^hard_rank .*finite"),
        ({"unigram_loss": 0.0}, r"unigram_loss 0\.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(changed, says):
    good = {
        "steps": [0, 10, 20],
        "hard_rank": [[60.0], [1.0], [1.0]],
        "loss_steps": [0, 10, 20],
        "losses": [6.2, 5.6, 5.4],
        "unigram_loss": UNIGRAMS,
    }
    assert judge_last(**good, post_ln=True) is None
    with pytest.raises(ValueError, match=says):
        judge_last(**(good | changed), post_ln=True)
