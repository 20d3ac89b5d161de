"""What the ledger reads off a trial's directory."""

import re
import threading
import time
from pathlib import Path

import pytest
from storages import ScriptedStorage

from orchestrator.ledger import ledger
from orchestrator.ledger.measured_rate import measured_rate
from orchestrator.ledger.removal import discard
from trialstore.claims import newest_attempt
from trialstore.errors import InputError
from trialstore.records import (
    COLLAPSE,
    FAILURE,
    LEASE,
    RESULT,
    Part,
    committed_steps,
    encode_json,
    manifest_key,
)
from trialstore.retries import give_up
from trialstore.storage import LocalStorage
from trialstore.sweep_file import trial_storage

WIDTHS = {"D": 256, "d_model": 64}
LEASE_HELD = {
    "attempt": 1, "owner": "a", "step": 7, "steps": 20, "loss": 3.5,
    "tokens_per_s": 100.0,
}  # fmt: skip


def now_ms(seconds_ago: float = 0.0) -> int:
    return int((time.time() - seconds_ago) * 1000)


def lease(**changed: object) -> dict:
    return {**LEASE_HELD, "heartbeat_ms": now_ms(), **changed}


def state(tmp_path: Path, **objects: dict) -> ledger.TrialStatus:
    trial = LocalStorage(tmp_path)
    for name, content in objects.items():
        trial.put(f"{name}.json", encode_json(content))
    return ledger.trial_status(trial, "0123", {}, 20)


def test_a_trial_without_a_directory_waits(tmp_path: Path):
    status = state(tmp_path)
    assert (status.state, status.step, status.steps) == ("waiting", 0, 20)


def test_a_fresh_heartbeat_is_running_and_says_how_far(tmp_path: Path):
    status = state(tmp_path, lease=lease())
    assert (status.state, status.step, status.loss) == ("running", 7, 3.5)


def test_an_old_heartbeat_is_stale(tmp_path: Path):
    assert state(tmp_path, lease=lease(heartbeat_ms=now_ms(3600))).state == "stale"


def test_a_released_lease_waits_to_be_continued(tmp_path: Path):
    assert state(tmp_path, lease=lease(released=True)).state == "waiting"


def test_a_failure_waits_for_its_retry_until_it_is_given_up(tmp_path: Path):
    failure = {"message": "disk full", "attempt": 1}
    status = state(tmp_path, lease=lease(released=True), failure=failure)
    assert (status.state, status.message) == ("waiting", "disk full")
    give_up(LocalStorage(tmp_path), "not used: the trainer has said why")
    status = ledger.trial_status(LocalStorage(tmp_path), "0123", {}, 20)
    assert (status.state, status.message) == ("failed", "disk full")


def test_giving_up_a_trial_that_left_no_word_records_the_reason(tmp_path: Path):
    give_up(LocalStorage(tmp_path), "the actor died")
    assert ledger.trial_status(LocalStorage(tmp_path), "0123", {}, 20).message == "the actor died"


@pytest.mark.parametrize("outcome", ["completed", "collapsed", "diverged", "stopped"])
def test_an_outcome_ends_a_trial_whatever_else_lies_there(tmp_path: Path, outcome: str):
    result = {"outcome": outcome, "step": 20, "steps": 20, "final": {}, "records": {}}
    status = state(tmp_path, lease=lease(), failure={"gave_up": True}, result=result)
    assert status.state == outcome
    assert status.over


@pytest.mark.parametrize("name", ["result", "failure"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000])
def test_a_trial_that_cannot_be_read_has_failed_and_says_how_to_go_on(
    tmp_path: Path, name: str, content: bytes
):
    LocalStorage(tmp_path).put(f"{name}.json", content)
    status = ledger.trial_status(LocalStorage(tmp_path), "0123", {}, 20)
    assert status.state == "failed"
    assert f"{name}.json" in status.message
    assert "rerun" in status.message


def test_a_running_trial_says_since_when_its_layers_have_collapsed(tmp_path: Path):
    status = state(tmp_path, lease=lease(), collapse={"step": 40, "reason": "hard rank"})
    assert (status.state, status.collapsed_since) == ("running", 40)
    assert status.state_text == "running, collapsed since 40"
    (told,) = ledger.Ledger("s", (status,)).to_json()["trials"]
    assert (told["state"], told["collapsed_since"]) == ("running", 40)
    assert ledger.Ledger("s", (status,)).counts["running"] == 1
    LocalStorage(tmp_path).delete(COLLAPSE)
    healthy = ledger.trial_status(LocalStorage(tmp_path), "0123", {}, 20)
    assert (healthy.collapsed_since, healthy.state_text) == (None, "running")


@pytest.mark.parametrize(
    ("spikes", "since", "text"),
    [
        (0, None, "running"),
        (1, None, "running, 1 loss spike"),
        (3, None, "running, 3 loss spikes"),
        (2, 12, "running, loss spiking since 12 (2 spikes)"),
        ("two", -1, "running"),
    ],
)
def test_a_running_trial_says_how_often_its_loss_spiked(
    tmp_path: Path, spikes: object, since: object, text: str
):
    status = state(tmp_path, lease={**lease(), "spikes": spikes, "spiking_since": since})
    assert status.state_text == text
    (told,) = ledger.Ledger("s", (status,)).to_json()["trials"]
    assert told["spikes"] == (spikes if isinstance(spikes, int) else None)


def test_a_trial_that_is_over_says_so_from_its_result(tmp_path: Path):
    result = {"outcome": "completed", "step": 20, "steps": 20, "final": {}, "records": {}}
    spikes = {"train_loss": {"count": 2, "since": 9}}
    spiked = state(tmp_path, result={**result, "stability": spikes})
    assert spiked.state_text == "completed, 2 loss spikes, not recovered"
    old = state(tmp_path, result=result)
    assert (old.state_text, old.spikes) == ("completed", None)


@pytest.mark.parametrize(("outcome", "since"), [("collapsed", 40), ("completed", None)])
def test_the_mark_of_a_trial_that_is_over_counts_if_that_is_its_outcome(
    tmp_path: Path, outcome: str, since: int | None
):
    result = {"outcome": outcome, "step": 20, "steps": 20, "final": {}, "records": {}}
    status = state(tmp_path, result=result, collapse={"step": 40})
    assert (status.state_text, status.collapsed_since) == (outcome, since)


@pytest.mark.parametrize("step", ["40", None, -1, 1.5, True])
def test_a_mark_without_a_step_is_a_broken_record(tmp_path: Path, step: object):
    status = state(tmp_path, lease=lease(), collapse={"step": step})
    assert status.state == "failed"
    assert "collapse.json" in status.message


def test_a_trial_is_found_by_how_its_id_begins_whatever_state_it_is_in(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    cells = [{"id": name, "axes": WIDTHS} for name in ("0123", "0199", "abcd")]
    content = {"name": "s", "training": {}, "resolved": {"trials": cells}}
    sweep.put("sweep.yaml", encode_json(content))  # JSON is YAML
    sweep.put("trials/abcd/result.json", b"{")
    assert ledger.find_trial(sweep, "ab") == "abcd"
    for prefix in ("", "01", "ff"):
        with pytest.raises(InputError, match="status"):
            ledger.find_trial(sweep, prefix)


def test_discarding_leaves_nothing(tmp_path: Path):
    trial = LocalStorage(tmp_path / "trial")
    for key in (RESULT, LEASE, FAILURE, "metrics/part-1-0-20.parquet"):
        trial.put(key, b"{}")
    trial.path(".result.json.x7kq_0ab").write_bytes(b"of a put that was cut off")
    assert discard(trial) == 4
    assert not trial.root.exists()


def test_trials_are_asked_for_side_by_side_and_come_in_their_order(tmp_path: Path):
    """A thousand trials of an object store, one after the other, would take minutes."""
    both = threading.Barrier(2, timeout=30)

    sweep = ScriptedStorage(tmp_path)
    # For ever, were one trial read before the next.
    sweep.before("open", lambda _: both.wait(), keys=RESULT)
    cells = [(name, {}, 9) for name in ("b", "a", "d", "c")]
    found = ledger.trial_statuses(sweep, cells)
    assert [status.id for status in found] == ["b", "a", "d", "c"]


OF_THREE_ATTEMPTS = [
    RESULT,
    LEASE,
    f"attempts/000003-{'a' * 32}.json",
    "checkpoints/step-00000020/attempt-3/state.pt",
    manifest_key(20),
    "metrics/part-3-1-20.parquet",
    "spectra/part-2-0-10.parquet",
]


@pytest.mark.parametrize("deleted", range(len(OF_THREE_ATTEMPTS)))
def test_a_trial_that_is_half_discarded_begins_anew(tmp_path: Path, deleted: int):
    trial = ScriptedStorage(tmp_path)
    trial.before("delete", KeyboardInterrupt(), skip=deleted)
    for key in OF_THREE_ATTEMPTS:
        trial.put(key, encode_json({"attempt": 3}))
    with pytest.raises(KeyboardInterrupt):
        discard(trial)
    left = trial.list()
    gone = set(OF_THREE_ATTEMPTS) - set(left)
    assert RESULT in gone or not gone
    if gone > {RESULT}:
        assert committed_steps(left) == []
    parts = [part.attempt for part in map(Part.parse, left) if part]
    assert newest_attempt(trial) >= max(parts, default=0)


def test_the_rate_of_a_sweep_is_that_of_all_its_workers_together(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    assert measured_rate(sweep) is None
    for name, flops, workers, seconds in [("a", 8e9, 1, 2.0), ("b", 24e9, 2, 4.0)]:
        result = {
            "flops": flops,
            "layout": {"workers": workers},
            "seconds": {"training": seconds},
        }
        sweep.put(f"trials/{name}/{RESULT}", encode_json(result))
    assert measured_rate(sweep) == 20e9 / 6


@pytest.mark.parametrize(
    "told",
    [
        b"{",
        b"{}",
        b'{"flops": 1, "layout": {"workers": 0}, "seconds": {"training": 1}}',
        b'{"flops": 1, "layout": [1], "seconds": {"training": 1}}',
        b'{"flops": 1, "layout": {"workers": 1}, "seconds": {"training": "x"}}',
        b'{"flops": 1%s, "layout": {"workers": 1}, "seconds": {"training": 1}}' % (b"0" * 400),
        b'{"flops": NaN, "layout": {"workers": 1}, "seconds": {"training": 1}}',
        b'{"flops": -1, "layout": {"workers": 1}, "seconds": {"training": 1}}',
        b'{"flops": 1e308, "layout": {"workers": 1}, "seconds": {"training": 1e-308}}',
    ],
)
def test_what_tells_no_rate_gives_none(tmp_path: Path, told: bytes):
    sweep = LocalStorage(tmp_path)
    sweep.put(f"trials/a/{RESULT}", told)
    assert measured_rate(sweep) is None


def test_a_folder_that_is_no_sweep_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(InputError, match=r"no sweep\.yaml"):
        ledger.read_ledger(LocalStorage(tmp_path))


def test_a_waiting_trial_has_the_steps_of_its_own_cell(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    cells = [
        {"id": "0123", "axes": WIDTHS, "steps": 40},
        {"id": "4567", "axes": {**WIDTHS, "steps": 30}},
        {"id": "89ab", "axes": WIDTHS},
    ]
    content = {"name": "s", "training": {"steps": 20}, "resolved": {"trials": cells}}
    sweep.put("sweep.yaml", encode_json(content))
    assert [trial.steps for trial in ledger.read_ledger(sweep).trials] == [40, 30, 20]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result", {"outcome": "completed", "step": "20", "steps": 20, "final": {}, "records": {}}),
        ("result", {"outcome": "won", "step": 20, "steps": 20, "final": {}, "records": {}}),
        ("result", {"outcome": "completed", "step": 20, "steps": 20, "final": {"val_loss": "0"},
                    "records": {}}),
        ("result", {"outcome": "completed", "step": 20, "steps": 20, "final": {},
                    "records": {"metrics": "../../0199/metrics/part-1-0-20.parquet"}}),
        ("result", {"outcome": "completed", "step": 20, "steps": 20, "final": {}, "records": {},
                    "trial_id": "9999"}),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_or_of_another_trial_is_not_believed(
    tmp_path: Path, name: str, content: dict
):
    status = state(tmp_path, **{name: content})
    assert status.state == "failed"
    assert f"{name}.json" in status.message


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        encode_json(lease(attempt="1")),
        encode_json(lease(step=-1)),
        encode_json(lease(loss="low")),
        encode_json(lease(steps=None)),
    ],
)
def test_a_lease_that_says_nothing_sensible_is_none(tmp_path: Path, content: bytes, caplog):
    LocalStorage(tmp_path).put(LEASE, content)
    status = ledger.trial_status(LocalStorage(tmp_path), "0123", {}, 20)
    assert (status.state, status.step) == ("waiting", 0)
    assert "lease.json" in caplog.text


@pytest.mark.parametrize("trial_id", ["../../elsewhere", "a/b", "", ".", "a\0b", "x" * 200])
def test_an_id_that_leads_elsewhere_is_none(tmp_path: Path, trial_id: str):
    sweep = LocalStorage(tmp_path)
    cells = [{"id": trial_id, "axes": WIDTHS}]
    content = {"name": "s", "training": {}, "resolved": {"trials": cells}}
    sweep.put("sweep.yaml", encode_json(content))
    with pytest.raises(InputError, match=re.escape(repr(trial_id))):
        ledger.read_ledger(sweep)
    with pytest.raises(InputError, match=re.escape(repr(trial_id))):
        trial_storage(sweep, trial_id)


def test_a_tag_in_a_sweeps_file_makes_nothing(tmp_path: Path):
    bait = tmp_path / "executed"
    text = f"name: !!python/object/apply:os.mkdir ['{bait}']\n"
    LocalStorage(tmp_path).put("sweep.yaml", text.encode())
    with pytest.raises(InputError, match="YAML"):
        ledger.read_ledger(LocalStorage(tmp_path))
    assert not bait.exists()


def test_a_failure_before_the_trial_was_taken_keeps_its_words(tmp_path: Path):
    """It is of the attempt that would have been next."""
    trial = LocalStorage(tmp_path)
    trial.put(FAILURE, encode_json({"message": "no such corpus", "attempt": 1}))
    give_up(trial, "failed 3 times")
    assert ledger.trial_status(trial, "0123", {}, 20).message == "no such corpus"
