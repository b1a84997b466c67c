"""OpenVINO GenAI as a measured peer: runs inside the interpreter that has openvino-genai, driven by bench/cpu.py.

The commands of bench/peer_llamacpp.py. `load` takes "backend" too: "PA" (paged attention) or "SDPA". The first load of
a GGUF saves the model as OpenVINO's own files in a folder beside it, and later loads read those, which is faster.
Everything else is the library's default, and `load` answers with what that is on this machine.

    peer_openvino.py first-token MODEL             prints the first greedy token of a fixed prompt, and ends
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from bench.divergence import answer as divergence_answer
from bench.prompts import START

VOCAB = 32000  # prompts are of ids below it, which every model measured here has
PROPERTIES = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")


def saved(path: str) -> Path:
    """The folder of a GGUF file's model as OpenVINO's own files, made when it is not there."""
    source = Path(path)
    folder = source.with_name(f"{source.stem}-openvino")
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        link = part / "model.gguf"
        link.symlink_to(source.resolve())
        genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
        if not (part / "openvino_model.bin").exists():
            raise SystemExit(f"OpenVINO has not saved {path} in {part}")
        part.rename(folder)
    return folder


class Peer:
    """A pipeline on one model."""

    def __init__(self, path: str, threads: int, backend: str = "PA") -> None:
        self.folder = saved(path)
        self.threads = threads
        self.random = np.random.default_rng(0)
        settings = {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": backend}
        self.pipeline = genai.LLMPipeline(str(self.folder), "CPU", **settings)
        self.plain: Any = None

    def compiled(self) -> Any:
        """The model without the pipeline: for its logits, and for what its properties are."""
        if self.plain is None:
            core = openvino.Core()
            model = core.read_model(self.folder / "openvino_model.xml")
            self.plain = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": self.threads})
        return self.plain

    def properties(self) -> str:
        model = self.compiled()
        text = ", ".join(f"{name} {model.get_property(name)}" for name in PROPERTIES)
        self.plain = None
        return text

    def generate(self, prompt: int, gen: int, streams: int) -> Any:
        """The library's own measurements of `gen` greedy tokens after `streams` random prompts."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = gen, True, False
        ids = openvino.Tensor(self.random.integers(0, VOCAB, (streams, prompt)).astype(np.int64))
        mask = openvino.Tensor(np.ones((streams, prompt), np.int64))
        return self.pipeline.generate(genai.TokenizedInputs(ids, mask), config).perf_metrics

    def prefill(self, prompt: int) -> float:
        return float(self.generate(prompt, 1, 1).get_ttft().mean) / 1e3

    def decode(self, prompt: int, gen: int, streams: int) -> float:
        metrics = self.generate(prompt, gen + 1, streams)
        return float(metrics.get_generate_duration().mean - metrics.get_ttft().mean) / 1e3

    def logits(self, tokens: list[int]) -> Any:
        request = self.compiled().create_infer_request()
        count = len(tokens)
        row = np.arange(count, dtype=np.int64)[None]
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": row,
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.asarray(request.infer(inputs)["logits"], np.float32)[0]


def first_token(path: str) -> None:
    pipeline = genai.LLMPipeline(str(saved(path)), "CPU", INFERENCE_NUM_THREADS=2)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = 1, True, False
    ids = openvino.Tensor(np.array([START], np.int64))
    result = pipeline.generate(genai.TokenizedInputs(ids, openvino.Tensor(np.ones((1, len(START)), np.int64))), config)
    print(result.tokens[0][0], flush=True)
    os._exit(0)


def main() -> None:
    if sys.argv[1:2] == ["first-token"]:
        return first_token(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")  # the library prints to standard output
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        answer: dict[str, Any]
        if do == "load":
            peer = Peer(**command)
            answer = {"version": version("openvino-genai"), "system": peer.properties()}
        elif do == "prepare":
            saved(command["path"])
            answer = {}
        elif do in {"prefill", "decode"}:
            assert peer, "load first"
            answer = {"seconds": getattr(peer, do)(**command)}
        elif do == "logits":
            assert peer, "load first"
            answer = dict(divergence_answer(peer.logits(command["tokens"]), command["path"], command["write"]))
        else:
            raise SystemExit(f"no command {do!r}")
        print(json.dumps(answer), file=out, flush=True)
    return None


if __name__ == "__main__":
    main()
