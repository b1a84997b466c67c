"""What decides the text of a seeded answer besides the request: Herder's version, the model's files, how it is run."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from herder.core.errors import HerderError
from herder.serve.config import ModelSpec


def fingerprint(spec: ModelSpec, prompts_apart: bool = False) -> str:
    """`fp_` and 12 hexadecimal digits, for clients that compare it before they rely on a seed. The files stand for
    their contents by name, size and time of change. prompts_apart: of the executor's limits: by default the CPU decides
    the arithmetic of prompts. Blocks for a few system calls."""
    try:
        version = importlib.metadata.version("herder")
    except importlib.metadata.PackageNotFoundError:
        version = "source"
    parts = [version, spec.runtime, spec.device, spec.dtype, spec.template, spec.chat_format, spec.source]
    parts += ["prompts apart"] if prompts_apart else []
    parts += _files(spec)
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _files(spec: ModelSpec) -> list[str]:
    from herder.weights import store

    try:
        path = store.find(spec.source)
        files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
        if spec.template is not None:
            files.append(Path(spec.template))
        return [_identity(file) for file in files]
    except (HerderError, OSError):  # it was loaded from somewhere, so the name has to do
        return []


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"
