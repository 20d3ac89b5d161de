"""What a sweep survives: every fault at random moments, compared with an undisturbed run.

    python -m tests.faults [--moments 3] [--only NAME ...] [--keep DIR]

Real processes throughout: the command itself, Ray nodes, MLflow servers; signals and damaged files
are the faults. See `faults` for what is done and `checks` for what must hold afterwards.
"""
