"""A plan: what a sweep costs, what it cannot answer, and the file that says what it came to."""

import json
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from analysis.wording import duration
from orchestrator.grid.expand import expand
from orchestrator.grid.plan import DEFAULT_RATES, START_SECONDS, Plan, make_plan
from orchestrator.grid.plan_records import plan_json, resolved_yaml
from orchestrator.grid.plan_view import render_plan
from orchestrator.sweep.load import SweepConfig, parse_sweep
from trainers.accounting import parameters, training_flops_per_token, training_memory_bytes
from trainers.data.sources import DataSpec
from trainers.spec import SEMANTICS_VERSION

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

#: Nothing to warn of.
SOUND = """\
name: mini
model: {architecture: gpt2, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  norm: [pre, post]
  width_multiplier: [1, 1.5, 2.67, 4, 5.33, 8]
match: [none, params]
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
spectra: {every: 20}
"""


def config(*overrides: str, text: str = SOUND) -> SweepConfig:
    return parse_sweep(text, "mini.yaml", overrides)


def plan(*overrides: str, rate: float | None = None) -> Plan:
    chosen = config(*overrides)
    return make_plan(chosen, expand(chosen, DATA, 512), rate)


def rendered(shown: Plan, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render_plan(shown))
    return capture.get()


# --- cost ----------------------------------------------------------------------------------


def test_the_json_has_what_the_contract_says():
    found = json.loads(json.dumps(plan_json(plan())))
    assert found.keys() >= {"sweep", "trials", "dropped", "merged", "warnings", "totals"}
    assert found.keys() >= {"adjusted", "overrides", "notes"}
    assert found["sweep"] == "mini"
    assert len(found["trials"]) == 22
    for trial in found["trials"]:
        assert trial.keys() == {
            "id",
            "holds",
            "axes",
            "parameters",
            "flops_per_token",
            "tokens",
            "passes",
            "memory_bytes",
            "workers",
            "seconds",
            "branch",
        }
        assert trial["parameters"].keys() == {
            "total",
            "non_embedding",
            "embedding",
            "head",
            "attention",
            "ffn",
            "norm",
        }
    assert found["totals"].keys() == {"trials", "flops", "device_hours", "energy_kwh", "cost"}


def test_a_row_costs_what_the_accounting_says():
    row = plan("resources.workers=2").rows[0]
    spec = row.trial.spec
    assert row.parameters == parameters(spec.model)
    assert row.flops_per_token == training_flops_per_token(spec.model)
    assert row.memory_bytes == training_memory_bytes(spec)
    assert row.tokens == 100 * 2048
    assert row.workers == 2
    assert row.flops == row.trial.flops == row.flops_per_token * row.tokens


def test_totals_are_sums():
    found = plan("workers=2", "watts_per_worker=300", "price_per_device_hour=2")
    hours = sum(row.seconds for row in found.rows) * 2 / 3600
    assert found.totals.trials == len(found.rows)
    assert found.totals.flops == sum(row.flops for row in found.rows)
    assert found.totals.device_hours == pytest.approx(hours)
    assert found.totals.energy_kwh == pytest.approx(hours * 0.3)
    assert found.totals.cost == pytest.approx(hours * 2)


def test_energy_and_cost_are_unknown_where_no_rate_is_given():
    assert (plan().totals.energy_kwh, plan().totals.cost) == (None, None)


def test_a_measured_rate_takes_the_place_of_the_default():
    assumed, measured = plan(), plan(rate=4 * DEFAULT_RATES["cpu"])
    assert (assumed.rate, assumed.rate_measured) == (DEFAULT_RATES["cpu"], False)
    assert measured.rate_measured
    slow, fast = assumed.rows[0].seconds - START_SECONDS, measured.rows[0].seconds - START_SECONDS
    assert slow == pytest.approx(4 * fast)


def test_measuring_costs_time_too():
    assert plan("evaluation.every=1").rows[0].seconds > plan().rows[0].seconds
    assert plan("spectra.every=1").rows[0].seconds > plan().rows[0].seconds


def test_more_workers_take_less_time_for_the_same_work():
    one, two = plan().rows[0], plan("workers=2").rows[0]
    assert two.seconds - START_SECONDS == pytest.approx((one.seconds - START_SECONDS) / 2)
    assert one.flops == two.flops


# --- what the sweep cannot answer ----------------------------------------------------------


def test_a_sound_sweep_is_warned_of_nothing():
    assert plan().warnings == []


@pytest.mark.parametrize(
    ("override", "warning"),
    [
        (
            "spectra.tokens=4096",
            "spectra.tokens 4096 is less than 10 per unit of the widest FFN (D = 512)",
        ),
        ("match=none", "no equal budgets (match has neither params nor flops)"),
        ("match=params", "no fixed d_model (match lacks none)"),
        ("width_multiplier=[2, 4]", "match none: some group has 2 widths"),
        (
            "width_multiplier=[1, 2.67, 4, 8]",
            "match params: some group has 4 widths and one replicate",
        ),
        ("ffn_multiple=24", "trials off the budget by more than 2 %"),
        ("spectra.every=100", "2 snapshots per trial"),
    ],
)
def test_what_a_sweep_cannot_answer_is_said_before_it_runs(override, warning):
    assert any(text.startswith(warning) or warning in text for text in plan(override).warnings)


def test_widths_are_counted_for_each_model_size_by_itself():
    warnings = plan("grid.d_model=[64, 128]", "width_multiplier=[2, 4]").warnings
    assert any(text.startswith("match params: some group has 2 widths") for text in warnings)
    assert any(text.startswith("match none: some group has 2 widths") for text in warnings)


def test_replicates_make_up_for_fewer_widths():
    assert plan("width_multiplier=[1, 2.67, 4, 8]", "seed=[0, 1, 2]").warnings == []


# --- the resolved file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["match=[none, params]", "width_multiplier=[1.5, 2, 1000]", "grid.spectra.every=[5, 10]"],
        ["ffn_width=[64, [32, 96]]", "match=none"],
        ["corpus={kind: text, paths: ['yes', '1e-3', '010']}", "name='1e3'"],
        ["resources={workers: 2, micro_batch: 4, watts_per_worker: 0.1}"],
        ["grid.learning_rate=[1e-5, 3.3e-4]"],
        ["grid.architecture=[gpt2, ngpt]", "grid.ffn_weight=[plain, weight_norm]"],
        ["grid.norm=[pre, mix]", "grid.mix_alpha=[0.25, 1]", "grid.kv_heads=[null, 1]"],
        ["schedule=wsd", "grid.steps=[100, 200]", "warmup_steps=10", "decay_fraction=0.25"],
        ["grid.warmup_steps=[null, 10]", "grid.optimizer=[adamw, muon]", "momentum=0.9"],
        [
            "overrides=[{when: {norm: [post]}, set: {learning_rate: 1e-4, spectra.every: 10}}, "
            "{when: {width_multiplier: 4, norm: pre}, set: {activation: relu2}}]"
        ],
    ],
)
@pytest.mark.long
def test_the_resolved_file_reads_back_as_the_same_sweep(overrides):
    first = config(*overrides)
    grid = expand(first, DATA, 512)
    text = resolved_yaml(first, grid, DATA, 512)
    again = parse_sweep(text, "sweep.yaml")
    assert again == first
    assert expand(again, DATA, 512) == grid
    assert resolved_yaml(again, grid, DATA, 512) == text


def test_the_resolved_section_says_what_the_grid_came_to():
    chosen = config("width_multiplier=[1.5, 2, 4, 1000]", "memory_mb=20000")
    grid = expand(chosen, DATA, 512)
    found = yaml.safe_load(resolved_yaml(chosen, grid, DATA, 512))["resolved"]
    assert found["semantics_version"] == SEMANTICS_VERSION
    assert found["corpus_fingerprint"] == DATA.corpus_fingerprint
    assert found["tokenizer_hash"] == DATA.tokenizer_hash
    assert found["vocab_size"] == 512
    assert [trial["id"] for trial in found["trials"]] == [trial.id for trial in grid.trials]
    for written, trial in zip(found["trials"], grid.trials, strict=True):
        assert written["holds"] == list(trial.matchings)
        assert written["axes"] == trial.axes
        assert written["flops"] == trial.flops
        assert written["steps"] == trial.spec.training.steps
        assert written["parameters"]["total"] == parameters(trial.spec.model).total
    assert [cell["axes"]["width_multiplier"] for cell in found["dropped"]] == [1000.0] * 2
    assert {cell["into"] for cell in found["merged"]} <= {trial.id for trial in grid.trials}


# --- the terminal --------------------------------------------------------------------------


def test_the_terminal_shows_every_trial_in_eighty_columns():
    shown = plan("width_multiplier=[1, 1.5, 2, 4, 100]")
    text = rendered(shown)
    assert all(line.rstrip() == line.rstrip()[:80] for line in text.splitlines())
    for row in shown.rows:
        (line,) = (line for line in text.splitlines() if line.startswith(row.trial.id))
        assert f" {row.trial.axes['d_model']} " in line
        assert line.rstrip().endswith(duration(row.seconds))


def test_the_terminal_says_what_was_left_out_and_what_to_mend():
    text = " ".join(rendered(plan("width_multiplier=[1.5, 2, 4, 1000]")).split())
    assert "dropped: no model with 4 heads" in text
    assert "merged: the same trial as width_multiplier 1.5" in text
    assert "warning: match params: some group has 2 widths" in text
    assert "FLOP/s per worker, a default" in text


def test_a_trial_of_all_matchings_says_all():
    shown = plan("width_multiplier=[1, 1.5, 2, 4]", "grid.seed=[0, 1, 2]", "batch_tokens=32768")
    both = [row for row in shown.rows if row.trial.matchings == ("none", "params")]
    text = rendered(shown)
    assert both
    for row in both:
        (line,) = (line for line in text.splitlines() if line.startswith(row.trial.id))
        assert line.split()[1] == "all"
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_the_columns_are_explained_above_them():
    lines = rendered(plan()).splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("trial "))
    legend = " ".join(lines[:header])
    assert "match: equal across widths (none: d_model" in legend
    assert "params: all parameters; N: parameters without embedding and head" in legend
    assert "D/d: achieved D / d_model" in legend
    assert max(map(len, map(str.rstrip, lines[:header]))) <= 80


def test_the_last_line_says_how_to_run_the_sweep():
    assert "widthlab run FILE" in rendered(plan()).splitlines()[-1]


@pytest.mark.parametrize(("steps", "total"), [(1, " FLOPs, 4 s\n"), (10**6, "device-hours (")])
def test_hours_are_given_where_there_are_any(steps, total):
    shown = rendered(plan(f"steps={steps}", "width_multiplier=4", "norm=pre", "match=none"))
    assert total in "\n".join(line.rstrip() for line in shown.splitlines())
    assert ("device-hours" in shown) == (steps > 1)


def test_a_stop_that_can_never_come_is_warned_of():
    def warned(*overrides):
        warnings = plan("stop_on_collapse=true", *overrides).warnings
        return [text for text in warnings if text.startswith("stop_on_collapse ")]

    assert len(warned("steps=100", "spectra.every=30")) == 0  # 0, 30, 60, 90: stopped at the end
    assert len(warned("steps=100", "spectra.every=40")) == 1


def test_one_of_a_thing_is_singular():
    shown = plan("width_multiplier=4", "norm=pre", "match=none", "spectra.every=100000")
    assert any(text.startswith("match none: some group has 1 width;") for text in shown.warnings)
    assert "1 trials" not in rendered(shown)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ffn_width=10000000", "match=none"],
        ["d_model=10000000", "head_dim=10000", "width_multiplier=1", "reference_multiplier=1"],
        ["width_multiplier=[4, 10000]"],
        ["reference_multiplier=10000", "width_multiplier=[4, 10000]"],
        ["steps=99999999", "batch_tokens=6400000000"],
        ["depth=10000", "width_multiplier=4"],
    ],
)
def test_the_largest_numbers_there_are_can_be_planned_and_shown(overrides):
    shown = plan(*overrides, "memory_mb=1000000000")
    assert len(rendered(shown).splitlines()) > len(shown.rows)
    json.dumps(plan_json(shown), allow_nan=False)


def test_brackets_in_names_are_shown_as_they_are():
    shown = plan("ffn_width=[[64, 96]]", "match=none")
    assert "[64, 96]" in rendered(shown)


@pytest.mark.processes
def test_a_plan_is_made_without_torch_ray_or_mlflow():
    heavy = {"torch", "ray", "mlflow", "transformers", "deepspeed", "pandas"}
    code = (
        "import sys, orchestrator.grid.plan, orchestrator.grid.plan_view, orchestrator.sweep.load;"
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
