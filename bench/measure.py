"""One row of the table: every engine's best setting found by a first try, then rounds that interleave the engines."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.models import ROOT, Models
from bench.peers import Worker
from bench.prompts import SPECULATION
from bench.rows import OPENVINO, Row
from herder.runtime.packing import store
from herder.weights.source import open_model

HERDER, LLAMA, VINO = "Herder", "llama.cpp", "OpenVINO"
SCRIPTS = {HERDER: "worker_herder.py", LLAMA: "peer_llamacpp.py", VINO: "peer_openvino.py"}
MOST_DRAFTS = 10  # tokens guessed ahead

Settings = dict[str, Any]


@dataclass(frozen=True)
class Pythons:
    """Interpreters that have the peers. llama_avx2: llama.cpp built for AVX2 only."""

    llama: str = ""
    llama_avx2: str = ""
    openvino: str = ""

    def of(self, engine: str, row: Row) -> str:
        if engine == HERDER:
            return sys.executable
        return self.openvino if engine == VINO else self.llama_avx2 if row.isa else self.llama


@dataclass
class Entry:
    """An engine on a file with its settings. load: given to "load"; call: to each measurement. seconds: one a round."""

    engine: str
    kind: str
    path: Path
    load: Settings = field(default_factory=dict)
    call: Settings = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    worker: Worker | None = None

    def open(self, row: Row, pythons: Pythons, threads: int) -> None:
        self.worker = Worker(pythons.of(self.engine, row), SCRIPTS[self.engine])
        mine = {"tokens": max(1024, row.room), "isa": row.isa} if self.engine == HERDER else {}
        self.about = self.worker.ask("load", path=str(self.path), threads=threads, **mine, **self.load)

    def close(self) -> None:
        if self.worker:
            self.worker.close()
            self.worker = None

    def time(self, row: Row) -> float:
        assert self.worker, "open first"
        arguments = {"prompt": row.prompt}
        if row.what == "decode":
            arguments |= {"gen": row.gen, "streams": row.streams}
        return float(self.worker.ask(row.what, **arguments, **self.call)["seconds"])

    def limits(self) -> dict[str, float]:
        """Of this machine, now; Herder's worker alone measures them."""
        assert self.worker, "open first"
        return self.worker.ask("limits")

    def record(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "format": self.kind,
            "file_bytes": self.path.stat().st_size,
            "settings": self.load | self.call,
            "version": self.about.get("version", ""),
            "system": self.about.get("system", ""),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Tries:
    """What first tries of the peers' settings gave, by row, and how to keep it."""

    known: dict[str, list[dict[str, Any]]]
    save: Callable[[], None]


def candidates(row: Row, models: Models) -> list[Entry]:
    """Every engine, format and setting that a row tries."""
    entries = []
    for kind in row.formats:
        path = models.file(row.shape, kind)
        entries.append(Entry(HERDER, kind, path))
        for repack in row.repacks:
            for flash in (True, False):
                entries.append(Entry(LLAMA, kind, path, {"repack": repack}, {"flash": flash}))
        if kind in OPENVINO and not row.isa:
            theirs = OPENVINO[kind]
            path = models.file(row.shape, theirs)
            entries += [Entry(VINO, theirs, path, {"backend": backend}) for backend in ("PA", "SDPA")]
    return entries


def first_try(row: Row, entries: list[Entry], pythons: Pythons, threads: int) -> None:
    """One measurement of each peer's entries, after one to warm up where the measured part is the first that runs, as
    the only value of its `seconds`. Entries that differ in what a call is given share a process."""
    row = row.trial()
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        if entry.engine != HERDER:
            groups.setdefault((entry.engine, entry.kind, str(entry.load)), []).append(entry)
    for group in groups.values():
        group[0].open(row, pythons, threads)
        for entry in group:
            entry.about, entry.worker = group[0].about, group[0].worker
            if row.what == "prefill":
                entry.time(row)
            entry.seconds = [entry.time(row)]
            print(f"  {entry.engine} {entry.kind} {entry.load | entry.call}: {entry.seconds[0]:.3f} s", file=sys.stderr)
        group[0].close()


def recall(entries: list[Entry], tries: list[dict[str, Any]]) -> bool:
    """Gives the peers' entries what an earlier first try found; False if it did not try them all."""
    known = {(t["engine"], t["format"], str(t["settings"])): t["seconds"] for t in tries}
    for entry in entries:
        if entry.engine != HERDER:
            entry.seconds = known.get((entry.engine, entry.kind, str(entry.load | entry.call)), [])
    return all(entry.seconds for entry in entries if entry.engine != HERDER)


def best(entries: list[Entry]) -> list[Entry]:
    """Herder on every format, and the fastest entry of each peer."""
    chosen = [entry for entry in entries if entry.engine == HERDER]
    for engine in (LLAMA, VINO):
        if theirs := [entry for entry in entries if entry.engine == engine]:
            chosen.append(min(theirs, key=lambda entry: entry.seconds[0]))
    return chosen


def compare(row: Row, models: Models, pythons: Pythons, threads: int, rounds: int, tries: Tries) -> dict[str, Any]:
    """A row of prefill or decode, as the JSON has it. tries: of earlier runs, by row; a new one is added and saved."""
    entries = candidates(row, models)
    if not recall(entries, tries.known.get(row.name, [])):
        first_try(row, entries, pythons, threads)
        tries.known[row.name] = [entry.record() for entry in entries if entry.engine != HERDER]
        tries.save()
    chosen = best(entries)
    for entry in chosen:
        entry.seconds = []
    limits = (by_turns if row.apart else together)(row, chosen, pythons, threads, rounds)
    return {
        "limits": {name: statistics.median(one[name] for one in limits) for name in limits[0]},
        "model": chosen[0].about["model"],
        "entries": [entry.record() for entry in chosen],
    }


def orders(entries: list[Entry], rounds: int) -> Iterator[list[Entry]]:
    """The order of each round: forwards, then backwards, and so on."""
    for i in range(rounds):
        print(f"  round {i + 1} of {rounds}", file=sys.stderr)
        yield entries if i % 2 == 0 else entries[::-1]


def together(row: Row, entries: list[Entry], pythons: Pythons, threads: int, rounds: int) -> list[dict[str, float]]:
    """Measures entries that are all in memory, each after one measurement to warm up. The limits of each round, by the
    first entry."""
    for entry in entries:
        entry.open(row, pythons, threads)
        entry.time(row)
    limits = []
    for order in orders(entries, rounds):
        limits.append(entries[0].limits())
        for entry in order:
            entry.seconds.append(entry.time(row))
    for entry in entries:
        entry.close()
    return limits


def by_turns(row: Row, entries: list[Entry], pythons: Pythons, threads: int, rounds: int) -> list[dict[str, float]]:
    """The same with one entry in memory at a time, loaded and warmed up anew in every round."""
    # A short decode is enough: the measured one computes its own prompt, of full length, before it is timed. Nothing
    # comes before a prefill, so it takes one of the same length: a peer may keep buffers and code for each.
    warm = row.trial() if row.what == "decode" else row
    limits = []
    for order in orders(entries, rounds):
        for entry in order:
            entry.open(row, pythons, threads)
            entry.time(warm)
            if entry is entries[0]:
                limits.append(entry.limits())
            entry.seconds.append(entry.time(row))
            entry.close()
    return limits


def start(row: Row, models: Models, pythons: Pythons, threads: int, rounds: int) -> dict[str, Any]:
    """From before the process is made to its first token on standard output, the files in the page cache. Herder's
    weights have been packed before, with what `herder pack` does; what that leaves on disk is removed."""
    path = models.file(row.shape, row.formats[0])
    entries = [Entry(engine, row.formats[0], path) for engine in SCRIPTS]
    entries[0].call = {"packed": True}
    with open_model(path) as files:
        packed, _ = store(files)
    try:
        return _starts(row, entries, path, pythons, threads, rounds)
    finally:
        packed.unlink()


def _starts(row: Row, entries: list[Entry], path: Path, pythons: Pythons, threads: int, rounds: int) -> dict[str, Any]:
    for i in range(rounds + 1):
        print(f"  round {i} of {rounds}" if i else "  warming up", file=sys.stderr)
        for entry in entries if i % 2 == 0 else entries[::-1]:
            command = [pythons.of(entry.engine, row), str(ROOT / "bench" / SCRIPTS[entry.engine]), "first-token"]
            seconds = until_first_byte([*command, str(path)])
            if i:
                entry.seconds.append(seconds)
    for entry in entries:
        entry.open(row, pythons, threads)
        if entry.engine == HERDER:
            limits = entry.limits()
        entry.close()
    return {
        "limits": limits,
        "model": entries[0].about["model"],
        "entries": [entry.record() for entry in entries],
    }


def until_first_byte(command: list[str]) -> float:
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=Worker.environment()) as process:
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode or not first:
        raise SystemExit(f"{command[1]} ended with status {process.returncode}")
    return seconds


def speculation(row: Row, models: Models, pythons: Pythons, threads: int, rounds: int) -> dict[str, Any]:
    """Herder with drafts beside Herder without. Refuses figures of answers that are not the same."""
    path = models.file(row.shape, row.formats[0])
    plain = Entry(HERDER, row.formats[0], path, call={"most": 0})
    drafts = Entry(HERDER, row.formats[0], path, call={"most": MOST_DRAFTS})
    entries = [drafts, plain]
    worker = Worker(pythons.of(HERDER, row), SCRIPTS[HERDER])
    about = worker.ask("load", path=str(path), threads=threads, tokens=1024)
    limits = worker.ask("limits")
    tokens: list[int] = []
    for order in orders(entries, rounds):
        for entry in order:
            question = {"path": str(path), "threads": threads, "text": SPECULATION[row.text], "gen": row.gen}
            answer = worker.ask("speculate", **question, **entry.call)
            entry.seconds.append(answer["seconds"])
            if tokens and answer["tokens"] != tokens:
                raise SystemExit(f"{row.name}: speculation has changed the text")
            tokens = answer["tokens"]
    worker.close()
    for entry in entries:
        entry.about = about
    return {
        "limits": limits,
        "model": about["model"],
        "entries": [entry.record() for entry in entries],
        "plan": {"gen": len(tokens)},  # an answer may end before it is as long as it might be
    }


def run(row: Row, models: Models, pythons: Pythons, threads: int, rounds: int, tries: Tries) -> dict[str, Any]:
    if row.what == "start":
        result = start(row, models, pythons, threads, rounds)
    elif row.what == "speculate":
        result = speculation(row, models, pythons, threads, rounds)
    else:
        result = compare(row, models, pythons, threads, rounds, tries)
    return result | {"plan": {"prompt": row.prompt, "gen": row.gen} | result.get("plan", {})}
