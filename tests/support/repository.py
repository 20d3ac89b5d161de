"""Where things of the repository lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
DATA = ROOT / "tests" / "data"
SWEEPS = ROOT / "orchestrator" / "sweeps"  # the shipped ones
TINY = SWEEPS / "tiny.yaml"
SMALL = SWEEPS / "small.yaml"
