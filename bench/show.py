"""How long `herder show` takes on the headers of a checkpoint of Llama 3.1 405B, from process start to its end.

    python -m bench.show [--rounds 11]

The directory is made in a temporary place: 191 shards of 812 GB in all, of which the headers are there and the rest is
holes. Prints the median and the slowest of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from herder.weights.catalogue import published
from tests.weights.headers import write_headers

ROOT = Path(__file__).resolve().parent.parent


def seconds(directory: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "herder.cli", "show", str(directory)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "llama-3.1-405b"
        total = write_headers(directory, published("llama-3.1-405b").config)
        seconds(directory)  # warms the page cache
        times = [seconds(directory) for _ in range(rounds)]
    print(
        f"herder show, headers of {total / 1e9:.0f} GB: median {statistics.median(times):.2f} s, max {max(times):.2f} s"
    )


if __name__ == "__main__":
    main()
