"""What it costs to make a token store: seconds, and the most memory that was resident at once.

    python benchmarks/token_store.py [--megabytes 200] [--shards 20] [--beside CHECKOUT]

The corpus is made of lines of this Python's standard library, drawn at random into documents of a
few thousand characters, as .jsonl.zst shards and as the same shards unpacked. Each store is made
by a process of its own, in a cache of its own, with a byte-level BPE trained on the corpus.
CHECKOUT is another version of widthlab, which is given the unpacked shards: one that cannot read
compressed ones would leave them out.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

MAKE = """
import json, resource, sys, time
from pathlib import Path
from trainers.data.sources import DataSource
from trainers.data.store import open_store
began = time.perf_counter()
store = open_store(DataSource.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - began
opened = time.perf_counter()
open_store(DataSource.model_validate_json(sys.argv[1]), Path(sys.argv[2]), store.data_spec)
print(json.dumps({
    "seconds": seconds,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "tokens": len(store.train) + len(store.heldout),
    "held_out": len(store.heldout) / (len(store.train) + len(store.heldout)),
    "again": time.perf_counter() - opened,
}))
"""


def documents(seed: int) -> Iterator[str]:
    """Endless: 20 to 200 lines of the standard library's source each."""
    root = Path(sysconfig.get_path("stdlib"))
    lines = [
        line
        for path in sorted(root.glob("*.py"))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    draw = random.Random(seed)
    while True:
        yield "\n".join(draw.choices(lines, k=draw.randrange(20, 200)))


def make_corpus(folder: Path, megabytes: int, shards: int) -> None:
    """FOLDER/zst and FOLDER/plain: the same documents."""
    for kind in ("zst", "plain"):
        (folder / kind).mkdir(parents=True)
    for number in range(shards):
        rows, size = [], 0
        for text in documents(number):
            rows.append(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= megabytes * 10**6 / shards:
                break
        data = "".join(rows).encode()
        name = f"shard-{number:05d}.jsonl"
        (folder / "plain" / name).write_bytes(data)
        with pa.CompressedOutputStream(str(folder / "zst" / f"{name}.zst"), "zstd") as stream:
            stream.write(data)


def measured(checkout: Path, corpus: Path, cache: Path) -> dict[str, float]:
    source = {
        "corpus": {"kind": "text", "paths": [str(corpus)]},
        "tokenizer": {"kind": "bpe", "vocab_size": 8192},
    }
    done = subprocess.run(
        [sys.executable, "-c", MAKE, json.dumps(source), str(cache)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--beside", type=Path, help="a checkout of another version")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        make_corpus(folder, options.megabytes, options.shards)
        packed = sum(path.stat().st_size for path in (folder / "zst").iterdir())
        print(
            f"{options.megabytes} MB of text in {options.shards} shards, {packed / 1e6:.0f} MB "
            f"compressed, made in {time.perf_counter() - began:.0f} s; {os.cpu_count()} cores"
        )
        runs = [("this version, .jsonl.zst", here, "zst"), ("this version, .jsonl", here, "plain")]
        if options.beside:
            runs.append((f"{options.beside.name}, .jsonl", options.beside.resolve(), "plain"))
        print(
            f"{'':28} {'seconds':>8} {'peak MB':>8} {'tokens':>12} {'held out':>9} {'again s':>8}"
        )
        for number, (title, checkout, kind) in enumerate(runs):
            found = measured(checkout, folder / kind, folder / f"cache-{number}")
            print(
                f"{title:28} {found['seconds']:8.1f} {found['peak_mb']:8.0f} "
                f"{found['tokens']:12,} {found['held_out']:9.2%} {found['again']:8.3f}"
            )


if __name__ == "__main__":
    main()
