"""The Python interface: plan, run and judge sweeps, fit laws, and measure spectra.

    >>> import widthlab
    >>> widthlab.plan("tiny.yaml")
    >>> done = widthlab.run("tiny.yaml")
    >>> widthlab.load_sweep("widthlab-runs/tiny").trials

Every name is imported when it is first used: `import widthlab` needs neither torch nor Ray. Input
that cannot be used raises `widthlab.InputError`, a ValueError. docs/python.md shows the whole.
"""

import importlib
from typing import TYPE_CHECKING, Any

import _widthlab

_widthlab.check_packages("widthlab")

if TYPE_CHECKING:
    from analysis.spectrum import SpectrumMetrics, measure
    from analysis.tables.sweep_tables import SweepTables
    from trainers.spectra.probe import IGNORED, Probe, Tap
    from trialstore.errors import InputError
    from widthlab.law_fit import LawFit, fit
    from widthlab.sweep_plan import SweepPlan, plan
    from widthlab.sweep_result import SweepResult, run
    from widthlab.verdict import Verdict, analyse, load_sweep

    __version__: str

__all__ = [
    "IGNORED",
    "InputError",
    "LawFit",
    "Probe",
    "SpectrumMetrics",
    "SweepPlan",
    "SweepResult",
    "SweepTables",
    "Tap",
    "Verdict",
    "__version__",
    "analyse",
    "fit",
    "load_sweep",
    "measure",
    "plan",
    "run",
]

_MODULES = {
    "IGNORED": "trainers.spectra.probe",
    "InputError": "trialstore.errors",
    "LawFit": "widthlab.law_fit",
    "Probe": "trainers.spectra.probe",
    "SpectrumMetrics": "analysis.spectrum",
    "SweepPlan": "widthlab.sweep_plan",
    "SweepResult": "widthlab.sweep_result",
    "SweepTables": "analysis.tables.sweep_tables",
    "Tap": "trainers.spectra.probe",
    "Verdict": "widthlab.verdict",
    "analyse": "widthlab.verdict",
    "fit": "widthlab.law_fit",
    "load_sweep": "widthlab.verdict",
    "measure": "analysis.spectrum",
    "plan": "widthlab.sweep_plan",
    "run": "widthlab.sweep_result",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        found = _version()
    elif name in _MODULES:
        found = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # a copy that travels with a Ray job
        return "unknown"
