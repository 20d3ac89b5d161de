"""One trial from its spec to its result, uninterrupted: what it leaves behind."""

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest

from trainers import accounting
from trainers.data.batches import heldout_starts
from trainers.data.store import open_store
from trainers.engine.engine import learning_rate
from trainers.spec import parse_spec
from trainers.train import read_spec, train
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import METRICS, SPECTRA, read_records
from trialstore.storage import LocalStorage


@pytest.mark.long
def test_a_finished_trial_holds_what_was_promised_and_nothing_else(make_spec, trial, diary) -> None:
    end = train(make_spec(), trial, diary())
    assert (end.outcome, end.step) == ("completed", 10)
    claim, *others = trial.list()
    assert claim.startswith("attempts/000001-")
    assert others == [
        "checkpoints/step-00000010/attempt-1/mp_rank_00_model_states.pt",
        "checkpoints/step-00000010/manifest.json",
        "lease.json",
        "metrics/part-1-0-10.parquet",
        "result.json",
        "spec.json",
        "spectra/part-1-0-10.parquet",
    ]
    assert not [path for path in trial.root.rglob(".*") if path.is_file()]


@pytest.mark.long
def test_its_spec_is_read_back(make_spec, trial, diary) -> None:
    spec = make_spec(training__steps=1)
    train(spec, trial, diary())
    assert read_spec(trial) == spec
    assert parse_spec(trial.get(records.SPEC), "spec.json").id == spec.id


def test_a_spec_of_an_earlier_semantics_version_is_refused_before_anything_is_written(
    make_spec, trial, diary
) -> None:
    with pytest.raises(InputError, match="version 1"):
        train(make_spec(semantics_version=1), trial, diary())
    assert trial.list() == []


def test_a_directory_without_a_spec_is_no_trial(trial) -> None:
    with pytest.raises(InputError, match=re.escape(trial.url)):
        read_spec(trial)


@pytest.mark.long
def test_training_rows_are_of_every_update_and_held_out_rows_of_every_nth_and_the_last(
    make_spec, trial, diary
) -> None:
    train(make_spec(), trial, diary())
    rows = read_records(trial, METRICS).to_pylist()
    steps = {
        kind: [row["step"] for row in rows if row["kind"] == kind]
        for kind in ("train", "evaluation")
    }
    assert steps == {"train": list(range(1, 11)), "evaluation": [0, 4, 8, 10]}
    spectra = read_records(trial, SPECTRA).to_pylist()
    found = {(row["step"], row["site"], row["layer"]) for row in spectra}
    expected = {(s, site, l) for s in (0, 5, 10) for site in ("pre", "post") for l in (0, 1)}  # noqa: E741
    assert found == expected
    assert len(spectra) == len(expected)


@pytest.mark.long
def test_the_rows_say_what_the_update_was(make_spec, trial, diary) -> None:
    spec, log = make_spec(), diary()
    train(spec, trial, log)
    rows = [row for row in read_records(trial, METRICS).to_pylist() if row["kind"] == "train"]
    assert [row["train_loss"] for row in rows] == log.losses
    assert [row["tokens"] for row in rows] == [64 * step for step in range(1, 11)]
    assert [row["learning_rate"] for row in rows] == [
        learning_rate(spec.training, update) for update in range(10)
    ]
    assert all(row["grad_norm"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    assert all(row["mfu"] is None for row in rows)  # no peak is made up for a CPU


@pytest.mark.long
def test_an_evaluation_is_in_nats_in_perplexity_and_in_bits_per_byte(
    make_spec, trial, diary, text_source, token_cache
) -> None:
    spec = make_spec(training__steps=1)
    train(spec, trial, diary())
    store = open_store(text_source, token_cache)
    starts = heldout_starts(
        len(store.heldout), spec.evaluation.tokens, spec.model.context, spec.data.corpus_fingerprint
    )
    targets = store.heldout.windows(starts + 1, spec.model.context)
    text_bytes = (targets != 256).sum()  # a byte a token, and none for a separator
    rows = [row for row in read_records(trial, METRICS).to_pylist() if row["kind"] == "evaluation"]
    assert abs(rows[0]["val_loss"] - math.log(257)) < 0.1  # knows nothing yet
    for row in rows:
        assert row["val_perplexity"] == pytest.approx(math.exp(row["val_loss"]))
        bits = row["val_loss"] * targets.size / text_bytes / math.log(2)
        assert row["val_bits_per_byte"] == pytest.approx(bits)


@pytest.mark.long
def test_the_result_sums_up_the_records(make_spec, trial, diary) -> None:
    spec = make_spec()
    end = train(spec, trial, diary())
    result = json.loads(trial.get(records.RESULT))
    assert end.result == result
    rows = read_records(trial, METRICS).to_pylist()
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert result["trial_id"] == spec.id
    assert result["outcome"] == "completed"
    assert result["reason"] is None
    assert (result["step"], result["steps"], result["tokens"]) == (10, 10, 640)
    # A twentieth of ten updates is less than one: the last loss alone.
    assert result["final"]["train_loss"] == rows[-1]["train_loss"]
    for name in ("val_loss", "val_perplexity", "val_bits_per_byte"):
        assert result["final"][name] == evaluations[-1][name]
    assert result["best_val_loss"] == min(row["val_loss"] for row in evaluations)
    assert result["parameters"] == asdict(accounting.parameters(spec.model))
    assert result["flops"] == 640 * accounting.training_flops_per_token(spec.model)
    assert result["attempts"] == 1
    assert result["seconds"]["total"] == pytest.approx(
        sum(seconds for kind, seconds in result["seconds"].items() if kind != "total")
    )
    # Ten updates are too few to see a spike, and three evaluations too few for the end's slope.
    assert result["stability"]["train_loss"] is result["stability"]["grad_norm"] is None
    assert 0 < result["data"]["unigram_loss"] <= math.log(spec.model.vocab_size)
    assert result["layout"]["zero_stage"] == 0
    assert {"torch", "deepspeed", "python"} <= set(result["versions"])


@pytest.mark.long
def test_the_model_learns(make_spec, trial, diary) -> None:
    log = diary()
    end = train(make_spec(training__steps=30), trial, log)
    assert end.result["final"]["val_loss"] < log.losses[0] - 1.0


@pytest.mark.long
def test_a_finished_trial_is_not_trained_again(make_spec, trial, diary) -> None:
    spec = make_spec(training__steps=2)
    first = train(spec, trial, diary())
    before = {key: trial.get(key) for key in trial.list()}
    log = diary()
    assert train(spec, trial, log) == first
    assert log.starts == log.updates == []
    assert {key: trial.get(key) for key in trial.list()} == before


@pytest.mark.long
def test_a_directory_holds_one_trial(make_spec, trial, diary) -> None:
    """Neither a result nor a checkpoint of another trial is ever taken for this one's."""
    first = make_spec(training__steps=2)
    train(first, trial, diary())
    other = make_spec(training__steps=2, training__learning_rate=1e-3)
    with pytest.raises(InputError, match=f"trial {first.id} .*trial {other.id}"):
        train(other, trial, diary())
    trial.delete(records.RESULT)
    with pytest.raises(InputError, match=f"trial {first.id} .*trial {other.id}"):
        train(other, trial, diary())
    assert records.get_json(trial, records.FAILURE) is None


@pytest.mark.long
def test_the_log_hears_of_the_start_of_every_update_and_of_checkpoints(
    make_spec, trial, diary
) -> None:
    spec, log = make_spec(), diary()
    train(spec, trial, log)
    assert log.starts == [(spec.id, 1, 0, 10)]
    assert log.updates == list(range(1, 11))
    assert log.checkpoints == [4, 8, 10]


@pytest.mark.long
def test_the_lease_is_let_go_with_the_last_progress(make_spec, trial, diary) -> None:
    log = diary()
    train(make_spec(training__steps=3), trial, log)
    lease = records.get_json(trial, records.LEASE)
    assert lease["released"]
    assert (lease["attempt"], lease["step"], lease["steps"]) == (1, 3, 3)
    assert lease["loss"] == log.losses[-1]


@pytest.mark.long
def test_replicates_differ_and_equal_replicates_do_not(make_spec, tmp_path, diary) -> None:
    losses = []
    for i, replicate in enumerate([0, 0, 1]):
        log = diary()
        train(
            make_spec(training__steps=2, replicate=replicate), LocalStorage(tmp_path / str(i)), log
        )
        losses.append(log.losses)
    assert losses[0] == losses[1]
    assert not np.isclose(losses[0], losses[2], atol=1e-6).any()


def test_a_layout_for_more_workers_than_there_are_is_refused(make_spec, trial, diary) -> None:
    spec = make_spec(layout__workers=2)
    with pytest.raises(InputError, match=r"2 workers .*1"):
        train(spec, trial, diary())


def test_held_out_tokens_that_the_workers_cannot_share_are_refused(make_spec) -> None:
    """Otherwise trials of other worker counts would be measured on other tokens."""
    make_spec(
        layout__workers=3, training__batch_tokens=96, evaluation__tokens=96, spectra__tokens=48
    )
    with pytest.raises(ValueError, match=r"spectra\.tokens 128 .*8 windows of 16 tokens.* 3"):
        make_spec(layout__workers=3, training__batch_tokens=96, evaluation__tokens=96)
