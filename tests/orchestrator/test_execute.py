"""How many trials run side by side, and which can never run at all."""

import pytest

from analysis.errors import InputError
from orchestrator.execute import slots, trials_at_once
from orchestrator.trainable import resources, worker_resources
from trainers.data.sources import DataSpec
from trainers.model_spec import ModelSpec
from trainers.spec import Layout, TrainingSpec, TrialSpec


def trial(**layout: object) -> TrialSpec:
    return TrialSpec(
        model=ModelSpec(
            architecture="gpt2", norm="pre", d_model=32, head_dim=16, ffn_widths=(64,),
            context=32, vocab_size=257,
        ),
        training=TrainingSpec(steps=1, batch_tokens=1024, learning_rate=1e-3),
        data=DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash="0" * 16),
        replicate=0,
        layout=Layout.model_validate(layout),
    )  # fmt: skip


def test_workers_never_span_two_nodes():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert slots(nodes, {"CPU": 2.0}) == 2


def test_a_worker_with_a_gpu_needs_both():
    assert slots([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], {"CPU": 1.0, "GPU": 1.0}) == 1


def test_single_workers_fill_the_cluster_up_to_the_limit():
    nodes = [{"CPU": 4.0}]
    assert trials_at_once(nodes, [trial()], None) == 4
    assert trials_at_once(nodes, [trial()], 3) == 3


def test_trials_of_several_workers_are_admitted_by_whole_trials():
    assert trials_at_once([{"CPU": 5.0}], [trial(workers=2)], None) == 2


def test_two_workers_and_their_driver_fit_on_two_cpus():
    spec = trial(workers=2)
    assert resources(spec)["CPU"] + 2 * worker_resources(spec)["CPU"] <= 2.0


def test_a_single_worker_holds_its_real_resources_in_its_actor():
    assert resources(trial(cpus_per_worker=2, device="cuda")) == {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"workers": 4}, "needs 4 workers of 1 CPU each.* 2 CPU in all, has room for 2"),
        ({"cpus_per_worker": 3}, "needs 1 workers of 3 CPU .* has room for 0"),
        ({"workers": 2, "device": "cuda"}, "1 CPU, 1 GPU .* has room for 1"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused_with_the_numbers(layout: dict, message: str):
    with pytest.raises(InputError, match=message):
        trials_at_once([{"CPU": 2.0, "GPU": 1.0}], [trial(**layout)], None)
