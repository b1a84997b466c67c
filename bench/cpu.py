"""Herder beside the fastest peers on this CPU, row by row; writes docs/benchmarks.{json,md,svg}.

    python -m bench.cpu --llama-python FILE --llama-avx2-python FILE --openvino-python FILE --models FOLDER
                        [--rows prefill-135m,decode-1b] [--rounds 5] [--retry] [--prepare] [--quality-tokens 50000]
                        [--quick]

The interpreters are those of bench/README.md. Every run merges its rows into docs/benchmarks.json, so the table can be
made in slices; without --rows it is all of them. A row first tries every peer in every format and setting (kept for
later runs of the row, unless --retry), then interleaves the best ones with Herder, in an order that turns from round to
round; the figures are medians. Engines that do not fit in memory together are loaded anew for each measurement.
--prepare only makes the model files. --quality-tokens measures divergences (bench/quality.py) after the rows, or alone
with --rows none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import quality
from bench.chart import Bar, svg
from bench.measure import SCRIPTS, VINO, Pythons, Tries, run
from bench.models import ROOT, Models, cpu_name
from bench.peers import Worker
from bench.report import markdown, measured
from bench.rows import BY_NAME, OPENVINO, ROWS, Row
from bench.verdict import verdict

CHART = "benchmarks.svg"


def need(python: str, option: str, module: str) -> None:
    """Refuses to measure without a peer."""
    if python and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
        return
    found = f"{python} has no {module}" if python else "it is not given"
    raise SystemExit(f"{option}: {found}: name an interpreter that has {module} (bench/README.md says how to make one)")


def check(rows: list[Row], pythons: Pythons, with_quality: bool) -> None:
    peers = any(not row.single for row in rows) or with_quality
    if peers or not rows:
        need(pythons.llama, "--llama-python", "llama_cpp")
    if any(not row.single and not row.isa for row in rows) or with_quality:
        need(pythons.openvino, "--openvino-python", "openvino_genai")
    if any(row.isa for row in rows):
        need(pythons.llama_avx2, "--llama-avx2-python", "llama_cpp")


def small(row: Row) -> Row:
    return replace(row, prompt=min(row.prompt, 64), gen=min(row.gen, 8))


def empty() -> dict[str, Any]:
    return {"cpu": cpu_name(), "threads": 2, "rows": {}, "tries": {}, "quality": {}}


def load(path: Path, threads: int) -> dict[str, Any]:
    """What earlier runs measured. Refuses to mix machines."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "rows" not in document:  # none yet, or of an older form
        return empty() | {"threads": threads}
    document = empty() | document
    if (document["cpu"], document["threads"]) != (cpu_name(), threads):
        was = f"{document['cpu']}, {document['threads']} threads"
        raise SystemExit(f"{path} is of {was}; this is {cpu_name()}, {threads}: move it away to begin a new table")
    return document


def merge(document: dict[str, Any], name: str, result: dict[str, Any], today: str) -> None:
    """A row's new figures in place of its old ones; rows that the table no longer has are dropped, and all in order."""
    rows = document["rows"] | {name: {"date": today, **result}}
    document["rows"] = {row.name: rows[row.name] for row in ROWS if row.name in rows}


def bars(document: dict[str, Any]) -> list[Bar]:
    rows = document["rows"]
    found = ((row, verdict(row, rows[row.name], document["quality"])) for row in measured(document))
    return [Bar(row.title, one.ratio, row.goal) for row, one in found]


def save(document: dict[str, Any], out: Path) -> None:
    (out / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if document["rows"]:
        (out / "benchmarks.md").write_text(markdown(document, CHART), encoding="utf-8")
        caption = f"Speed beside the best of llama.cpp and OpenVINO, {document['threads']} threads"
        (out / CHART).write_text(svg(bars(document), caption), encoding="utf-8")


def selected(names: str) -> list[Row]:
    if names == "none":
        return []
    if unknown := [name for name in names.split(",") if name != "all" and name not in BY_NAME]:
        raise SystemExit(f"--rows: no row {unknown[0]!r}: choose from {', '.join(BY_NAME)}")
    return list(ROWS) if names == "all" else [BY_NAME[name] for name in names.split(",")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default="", help="an interpreter with llama-cpp-python")
    parser.add_argument("--llama-avx2-python", default="", help="one whose llama.cpp is built for AVX2 only")
    parser.add_argument("--openvino-python", default="", help="an interpreter with openvino-genai")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache/herder/bench", help="keeps model files")
    parser.add_argument("--rows", default="all", help="names, separated by commas; all; none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality-tokens", type=int, default=0, metavar="N")
    parser.add_argument("--retry", action="store_true", help="find the peers' best settings anew")
    parser.add_argument("--prepare", action="store_true", help="make the model files of these rows, and end")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the results")
    args = parser.parse_args(arguments)
    rows = selected(args.rows)
    pythons = Pythons(args.llama_python, args.llama_avx2_python, args.openvino_python)
    check(rows, pythons, bool(args.quality_tokens))
    models = Models(args.models, args.llama_python, layers=2 if args.quick else None)
    if args.prepare:
        for row in rows:
            for kind in row.formats:
                models.file(row.shape, kind)
                if kind in OPENVINO and not row.isa and not row.single:
                    worker = Worker(pythons.openvino, SCRIPTS[VINO])
                    worker.ask("prepare", path=str(models.file(row.shape, OPENVINO[kind])))
                    worker.close()
        return
    document = empty() if args.quick else load(args.out / "benchmarks.json", args.threads)
    if args.retry:
        document["tries"] = {name: known for name, known in document["tries"].items() if BY_NAME.get(name) not in rows}
    tries = Tries(document["tries"], lambda: None if args.quick else save(document, args.out))
    for row in rows:
        print(row.name, file=sys.stderr)
        plan = (small(row), 1) if args.quick else (row, args.rounds)
        result = run(plan[0], models, pythons, args.threads, plan[1], tries)
        merge(document, row.name, result, datetime.date.today().isoformat())
        if not args.quick:
            save(document, args.out)
    if args.quality_tokens:

        def keep(found: dict[str, Any]) -> None:
            document["quality"] = found
            if not args.quick:
                save(document, args.out)

        quality.measure(document["quality"], args.quality_tokens, models, pythons, args.threads, keep)
    if document["rows"]:
        print(markdown(document, CHART))


if __name__ == "__main__":
    main()
