"""Plan a sweep from its file and what is known of its corpus and of earlier trials."""

from dataclasses import replace

from orchestrator.grid.begun import begun_notes, begun_trials, in_begun_layouts
from orchestrator.grid.expand import expand
from orchestrator.grid.old_trials import notice_of_old_trials
from orchestrator.grid.plan import Plan, make_plan
from orchestrator.grid.planned_data import planned_data
from orchestrator.ledger.measured_rate import measured_rate
from orchestrator.sweep.config import SweepConfig
from trialstore.storage import Storage
from trialstore.trial_state import finished_trials


def plan_sweep(config: SweepConfig, sweep: Storage) -> Plan:
    """Return every trial of a sweep with its size and cost. Nothing is trained or written.

    Args:
        config: The sweep file.
        sweep: The sweep's directory, which need not exist. Trials that finished there give the
            rate of computing by which times are estimated.

    Raises:
        InputError: The sweep cannot be run as it is.
    """
    found = planned_data(config, sweep)
    grid = expand(config, found.data, found.vocab_size)
    asked = grid.trials
    grid = replace(grid, trials=in_begun_layouts(sweep, asked, begun_trials(sweep)))
    rate = measured_rate(sweep)
    made = make_plan(config, grid, rate, ids_known=found.known, contents=found.contents)
    made = replace(made, notes=[*made.notes, *begun_notes(asked, grid.trials)])
    over = finished_trials(sweep)
    if left := [trial for trial in grid.trials if trial.id not in over]:
        totals = make_plan(config, replace(grid, trials=left), rate).totals
        if notice := notice_of_old_trials(sweep, totals):
            made = replace(made, warnings=[notice, *made.warnings])
    return made
