"""The model files of the benches: the default model's own, synthetic ones, and both in other formats; made once."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from bench.peers import Worker
from herder.weights import store

ROOT = Path(__file__).resolve().parents[1]
OWN_FORMAT = "Q4_1"  # of the default model's published file


def default_model() -> Path:
    return store.resolve("smollm2")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


class Models:
    """Files in a folder: SHAPE-FORMAT.gguf. layers: fewer than the shapes have, for a quick try."""

    def __init__(self, folder: Path, llama_python: str, layers: int | None = None) -> None:
        self.folder = folder
        self.llama_python = llama_python
        self.layers = layers
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, shape: str, kind: str) -> Path:
        """Made if it is not there: synthetic in Q4_0, everything else from that (or from the default model's own file,
        to which there is a link) by llama.cpp's quantizer, so that all engines run the same weights."""
        suffix = f"-{self.layers}-layers" if self.layers and shape != "smollm2" else ""
        path = self.folder / f"{shape}{suffix}-{kind}.gguf"
        if path.exists():
            return path
        print(f"making {path}", file=sys.stderr)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        if shape == "smollm2" and kind == OWN_FORMAT:
            part.symlink_to(default_model())
        elif shape != "smollm2" and kind == "Q4_0":
            command = [sys.executable, "-m", "bench.synthetic", shape, str(part)]
            subprocess.run([*command, "--layers", str(self.layers)] if self.layers else command, check=True, cwd=ROOT)
        else:
            source = self.file(shape, OWN_FORMAT if shape == "smollm2" else "Q4_0")
            quantizer = Worker(self.llama_python, "peer_llamacpp.py")
            quantizer.ask("quantize", source=str(source), target=str(part), type=kind)
            quantizer.close()
        part.rename(path)
        return path
