"""One rank of several trials, one after the other, with neither a scheduler nor tracking.

    [torchrun] train_each.py FOLDER

FOLDER holds specs, NAME.json, and gets their trials, NAME.
"""

import os
import sys
from pathlib import Path

from trainers.__main__ import ConsoleLog
from trainers.spec import parse_spec
from trainers.train import train
from trialstore.storage import LocalStorage

if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        spec = parse_spec(path.read_bytes(), str(path))
        train(spec, LocalStorage(path.with_suffix("")), ConsoleLog())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo ranks may abort while the interpreter tears down
