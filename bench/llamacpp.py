"""Prefill, decode and batched decode of Herder beside llama.cpp, in one run; writes docs/benchmarks.{json,md}.

    python -m bench.llamacpp --llama-python PYTHON [--quick] [--shapes smollm2,llama-3.2-1b] [--rounds 5]

PYTHON is an interpreter with llama-cpp-python (bench/README.md). Every round measures every entry once, one after
another, in an order that turns from round to round, so that a slow spell of the machine hits all of them; the figures
are medians over the rounds. Herder runs the file as it is; llama.cpp runs it as it is and requantized to its own 4-bit
and 8-bit formats, and its best 4-bit figure is what Herder is compared with, measurement by measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import Worker
from bench.report import markdown
from herder.weights import store

ROOT = Path(__file__).resolve().parents[1]
STREAMS = (8, 32)


@dataclass
class Entry:
    """One line of the table: an engine on a file. seconds: measurement -> one value a round."""

    engine: str
    kind: str
    path: Path
    worker: Worker
    seconds: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, dict[str, bool]] = field(default_factory=dict)  # of each measurement, found by a first try


@dataclass(frozen=True)
class Plan:
    """How much to measure. prompt, gen: of prefill and single-stream decode. batched_*: of each stream."""

    rounds: int = 5
    prompt: int = 512
    gen: int = 128
    batched_prompt: int = 33  # a full page of the KV cache, and the token that the first step computes
    batched_gen: int = 32

    def measurements(self) -> dict[str, tuple[str, dict[str, int], int]]:
        """name -> (command, its arguments, tokens it yields)."""
        single = {"prompt": self.prompt, "gen": self.gen, "streams": 1}
        batched = {"prompt": self.batched_prompt, "gen": self.batched_gen}
        return {
            "prefill": ("prefill", {"prompt": self.prompt}, self.prompt),
            "decode": ("decode", single, self.gen),
            **{f"decode x{n}": ("decode", {**batched, "streams": n}, n * self.batched_gen) for n in STREAMS},
        }


QUICK = Plan(rounds=1, prompt=64, gen=8, batched_prompt=33, batched_gen=4)


def model_file(shape: str, folder: Path, layers: int | None) -> Path:
    """The default model's own file, or a synthetic one made in `folder`."""
    if shape == "smollm2":
        return store.resolve(shape)
    path = folder / f"{shape}-q4_0.gguf"
    command = [sys.executable, "-m", "bench.synthetic", shape, str(path)]
    subprocess.run([*command, "--layers", str(layers)] if layers else command, check=True, cwd=ROOT)
    return path


def measure(entries: list[Entry], plan: Plan) -> None:
    """A first try of everything, then `plan.rounds` rounds over all entries, every other one backwards.

    The first try warms up, and finds for llama.cpp whether flash attention is the faster choice for a measurement.
    """
    for entry in entries:
        for name, (do, arguments, _) in plan.measurements().items():
            tries: list[dict[str, bool]] = [{}] if entry.engine == "Herder" else [{"flash": True}, {"flash": False}]
            times = [entry.worker.ask(do, **arguments, **t)["seconds"] for t in tries]
            entry.settings[name] = tries[times.index(min(times))]
    for i in range(plan.rounds):
        print(f"round {i + 1} of {plan.rounds}", file=sys.stderr)
        for name, (do, arguments, _) in plan.measurements().items():
            for entry in entries if i % 2 == 0 else entries[::-1]:
                answer = entry.worker.ask(do, **arguments, **entry.settings[name])
                entry.seconds.setdefault(name, []).append(answer["seconds"])


def run_shape(shape: str, llama_python: str, plan: Plan, threads: int, layers: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="herder-bench-") as name:
        folder = Path(name)
        path = model_file(shape, folder, layers)
        base = "Q4_1" if shape == "smollm2" else "Q4_0"
        quantizer = Worker(llama_python, "peer_llamacpp.py")
        files = {base: path}
        # K-quants need rows of a multiple of 256; SmolLM2's 576 is not.
        for kind in ("Q4_0", "IQ4_NL", "Q8_0") if shape == "smollm2" else ("Q4_K_M",):
            files[kind] = folder / f"{kind}.gguf"
            quantizer.ask("quantize", source=str(path), target=str(files[kind]), type=kind)
        quantizer.close()

        entries = [Entry("Herder", base, path, Worker(sys.executable, "worker_herder.py"))]
        entries += [Entry("llama.cpp", k, p, Worker(llama_python, "peer_llamacpp.py")) for k, p in files.items()]
        about = [e.worker.ask("load", path=str(e.path), threads=threads) for e in entries]
        limits = entries[0].worker.ask("limits")
        measure(entries, plan)
        for entry in entries:
            entry.worker.close()
        return {
            "shape": shape + (f", {layers} layers" if layers else ""),
            "file_bytes": path.stat().st_size,
            "parameters": about[0]["parameters"],
            "limits": limits,
            "versions": {"herder": about[0]["version"], "llama-cpp-python": about[1]["version"]},
            "system": {"herder": about[0]["system"], "llama.cpp": about[1]["system"]},
            "entries": [
                {"engine": e.engine, "format": e.kind, "file_bytes": e.path.stat().st_size, "seconds": e.seconds}
                | {"settings": e.settings, "tokens_per_s": rates(e, plan)}
                for e in entries
            ],
        }


def rates(entry: Entry, plan: Plan) -> dict[str, float]:
    tokens = {name: count for name, (_, _, count) in plan.measurements().items()}
    return {name: round(tokens[name] / statistics.median(s), 2) for name, s in entry.seconds.items()}


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="an interpreter with llama-cpp-python")
    parser.add_argument("--shapes", default="smollm2,llama-3.2-1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs; writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of benchmarks.json and benchmarks.md")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan(rounds=args.rounds)
    layers = 2 if args.quick else None
    result = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": args.threads,
        "plan": vars(plan),
        "shapes": [
            run_shape(s, args.llama_python, plan, args.threads, None if s == "smollm2" else layers)
            for s in args.shapes.split(",")
        ],
    }
    print(text := markdown(result))
    if not args.quick:
        (args.out / "benchmarks.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.out / "benchmarks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
