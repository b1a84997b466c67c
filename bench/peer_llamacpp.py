"""llama.cpp as a measured peer: runs inside the interpreter that has llama-cpp-python, driven by bench/cpu.py.

Commands are JSON objects, one a line on standard input; each answer is one line on standard output.

    {"do": "load", "path": ..., "threads": 2, "repack": true}      -> {"version", "system"}
    {"do": "prefill", "prompt": 512}               -> {"seconds"}   one batch, an empty cache, logits of the last token
    {"do": "decode", "prompt": 512, "gen": 128, "streams": 1}
                                                   -> {"seconds"}   gen steps of one token a stream, after the prompt
                                  both with "flash": false for the attention without flash attention
    {"do": "quantize", "source": ..., "target": ..., "type": "Q4_0"}      -> {}
    {"do": "logits", "tokens": [...], "path": ..., "write": false}
                                                   -> {"tokens", "kl"}  beside the logits that the file holds

As llama-bench does, the tokens are arbitrary and nothing is sampled. All but flash attention and "repack" (weights are
rearranged at load) is the default of the library (the KV cache is float16); each stream has its own KV buffer.

    peer_llamacpp.py first-token MODEL [PROMPT]    prints the first greedy token of the chat-formatted prompt, or of a
                                                   fixed one without text, and ends
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

import llama_cpp as api
import numpy as np

from bench.divergence import answer as divergence_answer
from bench.prompts import START

FTYPES = {
    "Q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": api.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0,
    "IQ4_NL": api.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "Q4_K_M": api.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "F16": api.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": api.LLAMA_FTYPE_MOSTLY_BF16,
}


@api.llama_log_callback  # type: ignore[untyped-decorator]
def silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Errors only (ggml's level 4)."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


class Peer:
    """A loaded model and one context for each number of streams."""

    def __init__(self, path: str, threads: int, repack: bool = True) -> None:
        params = api.llama_model_default_params()
        params.use_extra_bufts = repack
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.threads = threads
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.contexts: dict[tuple[int, int, bool], Any] = {}
        self.filled: dict[tuple[int, int, bool], int] = {}  # context -> prompt length held by each of its streams

    def context(self, streams: int, length: int, flash: bool) -> Any:
        """A context whose every stream holds `length` tokens."""
        if (streams, length, flash) not in self.contexts:
            params = api.llama_context_default_params()
            params.n_ctx = -(-length // 256) * 256 * streams
            params.n_batch = params.n_ubatch = 512
            params.n_seq_max = streams
            params.n_threads = params.n_threads_batch = self.threads
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.kv_unified = False
            params.no_perf = True
            context = api.llama_init_from_model(self.model, params)
            if not context:
                raise SystemExit("llama.cpp cannot make a context")
            self.contexts[streams, length, flash] = context
        return self.contexts[streams, length, flash]

    def run(self, context: Any, tokens: list[tuple[int, int, int, bool]]) -> None:
        """One llama_decode over (token, position, stream, logits wanted), and its end."""
        batch = api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, stream, want) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
            batch.logits[i] = want
        status = api.llama_decode(context, batch)
        api.llama_synchronize(context)
        api.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")

    def token(self, i: int) -> int:
        return int((i * 7919 + 13) % self.vocab)

    def prompt(self, context: Any, length: int, stream: int) -> None:
        for start in range(0, length, 512):
            end = min(start + 512, length)
            self.run(context, [(self.token(i), i, stream, i == length - 1) for i in range(start, end)])

    def prefill(self, prompt: int, flash: bool = True) -> float:
        context = self.context(1, prompt, flash)
        api.llama_memory_clear(api.llama_get_memory(context), False)
        begin = time.perf_counter()
        self.prompt(context, prompt, 0)
        return time.perf_counter() - begin

    def decode(self, prompt: int, gen: int, streams: int, flash: bool = True) -> float:
        context = self.context(streams, prompt + gen, flash)
        memory = api.llama_get_memory(context)
        if self.filled.get((streams, prompt + gen, flash)) == prompt:
            for stream in range(streams):
                api.llama_memory_seq_rm(memory, stream, prompt, -1)
        else:
            api.llama_memory_clear(memory, False)
            for stream in range(streams):
                self.prompt(context, prompt, stream)
            self.filled[streams, prompt + gen, flash] = prompt
        begin = time.perf_counter()
        for i in range(gen):
            self.run(context, [(self.token(i + s), prompt + i, s, True) for s in range(streams)])
        return time.perf_counter() - begin

    def logits(self, tokens: list[int]) -> Any:
        """float32, (tokens, vocabulary), of one batch in an empty cache."""
        context = self.context(1, 512, True)
        api.llama_memory_clear(api.llama_get_memory(context), False)
        self.run(context, [(token, i, 0, True) for i, token in enumerate(tokens)])
        rows = api.llama_get_logits(context)
        return np.ctypeslib.as_array(rows, (len(tokens), self.vocab)).copy()


def quantize(source: str, target: str, kind: str) -> None:
    params = api.llama_model_quantize_default_params()
    params.ftype = FTYPES[kind]
    params.allow_requantize = True
    if api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot make {kind} of {source}")


def first_token(path: str, prompt: str | None) -> None:
    if prompt is None:
        peer = Peer(path, threads=2)
        logits = peer.logits(START)
        print(int(logits[-1].argmax()), flush=True)
        os._exit(0)
    model = api.Llama(path, n_ctx=2048, n_threads=2, flash_attn=True, verbose=False)
    messages = [{"role": "user", "content": prompt}]
    for event in model.create_chat_completion(messages, stream=True, max_tokens=1, temperature=0):
        if text := event["choices"][0]["delta"].get("content"):
            print(text, flush=True)
            os._exit(0)


def main() -> None:
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    if sys.argv[1:2] == ["first-token"]:
        return first_token(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    out = os.fdopen(os.dup(1), "w")  # llama.cpp prints to standard output while it quantizes
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        answer: dict[str, Any] = {}
        if do == "load":
            peer = Peer(**command)
            answer = {"version": api.__version__, "system": api.llama_print_system_info().decode().strip()}
        elif do == "quantize":
            quantize(command["source"], command["target"], command["type"])
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
