"""Write a plan as JSON, and a sweep as its resolved sweep.yaml.

Records keep their field names, so that files of all versions read alike. In them the matchings of a
trial are called `holds`, and the matching of another cell `hold`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.grid.branches import Branch
from orchestrator.grid.expand import Dropped, Grid, Merged, PlannedTrial
from orchestrator.grid.plan import Adjusted, Plan, adjusted
from orchestrator.grid.supply import passes
from orchestrator.sweep import strict_yaml
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.load import RESOLVED
from trainers.accounting import parameters
from trainers.data.contents import Contents
from trainers.data.sources import DataSpec
from trainers.spec import SEMANTICS_VERSION


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as `widthlab plan --json` prints it."""
    return {
        "sweep": plan.sweep,
        "trials": [
            {
                "id": row.trial.id if plan.ids_known else None,
                **_matchings(row.trial),
                "axes": row.trial.axes,
                "parameters": asdict(row.parameters),
                "flops_per_token": row.flops_per_token,
                "tokens": row.tokens,
                "passes": None
                if plan.contents is None
                else _finite(passes(row.trial.spec, plan.contents)),
                "memory_bytes": row.memory_bytes,
                "workers": row.workers,
                "seconds": row.seconds,
                "branch": _branch_json(row.branch, plan.ids_known),
            }
            for row in plan.rows
        ],
        "dropped": [_cell(cell) for cell in plan.dropped],
        "merged": [
            _cell(cell) | ({} if plan.ids_known else {"into": None}) for cell in plan.merged
        ],
        "adjusted": [_adjusted_json(change) for change in plan.adjusted],
        "overrides": [asdict(override) for override in plan.overrides],
        "notes": plan.notes,
        "warnings": plan.warnings,
        "rate": {"flops_per_s": plan.rate, "measured": plan.rate_measured},
        "totals": asdict(plan.totals),
        "corpus": None if plan.contents is None else plan.contents.to_dict(),
    }


def _matchings(trial: PlannedTrial) -> dict[str, Any]:
    return {"holds": list(trial.matchings)}


def _cell(cell: Dropped | Merged) -> dict[str, Any]:
    """A cell that is not a trial of its own; its `matching` is called `hold`."""
    return {"hold" if key == "matching" else key: value for key, value in asdict(cell).items()}


def _finite(number: float) -> float | None:
    return number if number < float("inf") else None


def _branch_json(branch: Branch | None, ids_known: bool) -> dict[str, Any] | None:
    if branch is None:
        return None
    return {"trunk": branch.trunk if ids_known else None, "step": branch.step}


def _adjusted_json(change: Adjusted) -> dict[str, Any]:
    return {
        "key": change.key,
        "from": change.before,
        "to": change.after,
        "why": change.why,
        "trials": change.trials,
    }


def resolved_yaml(
    config: SweepConfig,
    grid: Grid,
    data: DataSpec,
    vocab_size: int,
    git: Mapping[str, Any] | None = None,
    contents: Contents | None = None,
) -> str:
    """Return the sweep.yaml of a sweep's directory: the file with every default, and its trials.

    Reading it as a sweep file gives an equal config. Its section `resolved` is for the analysis and
    is not read back, because the trials follow from the rest.

    Args:
        config: The sweep.
        grid: Its trials.
        data: Fingerprint of the corpus and hash of the tokenizer.
        vocab_size: Rows of the embedding.
        git: Commit and dirty flag of the checkout that the sweep was started in, if any.
        contents: Documents, bytes and tokens of the corpus, if known.
    """
    resolved = {
        "semantics_version": SEMANTICS_VERSION,
        "corpus_fingerprint": data.corpus_fingerprint,
        "tokenizer_hash": data.tokenizer_hash,
        "vocab_size": vocab_size,
        "git": dict(git or {}),
        "corpus": None if contents is None else _contents_yaml(contents),
        "trials": [
            {
                "id": trial.id,
                **_matchings(trial),
                "axes": strict_yaml.Inline(trial.axes),
                "parameters": strict_yaml.Inline(asdict(parameters(trial.spec.model))),
                "steps": trial.spec.training.steps,
                "flops": trial.flops,
            }
            for trial in grid.trials
        ],
        "dropped": [strict_yaml.Inline(_cell(cell)) for cell in grid.dropped],
        "merged": [strict_yaml.Inline(_cell(cell)) for cell in grid.merged],
        "adjusted": [
            strict_yaml.Inline(_adjusted_json(change)) for change in adjusted(grid.trials)
        ],
    }
    return strict_yaml.dump({**config.to_dict(), RESOLVED: resolved})


def _contents_yaml(contents: Contents) -> dict[str, Any]:
    """Contents with one line for each source and each kind of file or document left out."""
    found = contents.to_dict()
    for key in ("sources", "left_out"):
        found[key] = [strict_yaml.Inline(entry) for entry in found[key]]
    return found
