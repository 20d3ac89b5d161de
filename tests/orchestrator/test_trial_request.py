"""What a driver hands to Ray: the spec itself, the same object in every process of a trial."""

import pickle

from small_spec import small_spec

from orchestrator.grid.branches import Branch
from orchestrator.tune.node_room import Need
from orchestrator.tune.trial_request import REQUEST, TrialRequest, request_of
from trialstore.retries import Budget


def test_it_reaches_another_process_unchanged() -> None:
    spec = small_spec(12, workers=2, branch_points=(4, 8))
    asked = TrialRequest("s3://b/sweep", None, "key", spec, Budget(2, 50), Branch("0" * 12, 4))
    arrived = request_of(pickle.loads(pickle.dumps({REQUEST: asked})))
    assert arrived == asked
    assert arrived.spec.id == spec.id
    assert arrived.spec.to_json() == spec.to_json()


def test_its_need_is_that_of_its_layout() -> None:
    asked = TrialRequest("/s", "a", "key", small_spec(12, workers=2, device="cuda"), Budget(0, 0))
    assert asked.need == Need(2, 1.0, 1.0)
