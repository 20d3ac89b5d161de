"""Faults: processes are killed, nodes are lost, disks fill up, and the sweep ends the same.

The tests beside this file kill some of it. The matrix takes every fault at random moments and
compares with an undisturbed run:

    python -m tests.faults [--moments 3] [--only NAME ...] [--keep DIR]

Everything is real: the command itself, Ray nodes, MLflow servers; signals and damaged files are the
faults. `faults.py` lists them, `checks.py` says what must hold afterwards.
"""
