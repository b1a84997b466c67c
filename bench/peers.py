"""Talks to a measured process: one JSON object a line in, one out. Both sides of a comparison are driven alike."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Worker:
    """A process that runs `script` under `python` and answers commands until it is closed."""

    def __init__(self, python: str, script: str) -> None:
        self.name = script
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            cwd=HERE.parent,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    @staticmethod
    def environment() -> dict[str, str]:
        """Lets a peer's interpreter import `bench`, from which it needs what has no dependencies."""
        return {**os.environ, "PYTHONPATH": str(HERE.parent)}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended with status {self.process.wait()} while asked to {do} {arguments}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
