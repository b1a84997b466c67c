"""Writes smollm2.json: perplexity and greedy answers of the default model in float32, by implementations not ours.

    python tests/golden/make_smollm2.py MODEL.gguf --llama-python PYTHON

MODEL.gguf is what `herder pull smollm2` fetched. PYTHON is an interpreter that has llama-cpp-python (bench/README.md),
whose tokenizer gives the token ids; transformers gives the logits. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.oracle import reference  # noqa: E402

TEXT = ROOT / "tests/data/persuasion.txt"
OUT = Path(__file__).with_name("smollm2.json")
CONTEXT = 512
ANSWER = 64

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the model's own default
QUESTIONS = [
    "Why is the sky blue?",
    "Write a short story about a shepherd who loses a llama in the mountains.",
    "Explain what a hash table is to somebody who has never programmed.",
    "List the planets of the solar system, one line each, with one fact about each of them.",
    "Write a Python function that returns the n-th Fibonacci number, and explain it.",
    "Was ist ein Gedicht? Antworte auf Deutsch.",
    "What were the causes of the French Revolution?",
]
PROMPTS = [
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"
    for q in QUESTIONS
]
PROMPTS.append("It is a truth universally acknowledged, that a single man in possession of a")  # no chat format

TOKENIZE = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], vocab_only=True, verbose=False)
parts = json.load(sys.stdin)
json.dump([model.tokenize(t.encode(), add_bos=False, special=s) for t, s in parts], sys.stdout)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ids_sha256(ids: list[int]) -> str:
    """Of the ids as little-endian int32."""
    return sha256(b"".join(i.to_bytes(4, "little") for i in ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-python", required=True)
    args = parser.parse_args()

    text = TEXT.read_text(encoding="utf-8")
    parts = [(text, False), *((p, True) for p in PROMPTS)]
    command = [args.llama_python, "-c", TOKENIZE, str(args.model)]
    done = subprocess.run(command, input=json.dumps(parts), capture_output=True, text=True, check=True)
    ids, *prompts = json.loads(done.stdout)

    model = reference.from_gguf(args.model)
    nll = reference.window_nll(model, ids, CONTEXT)
    scored = len(ids) - len(nll)
    answers = [reference.greedy(model, p, ANSWER) for p in prompts]
    OUT.write_text(
        json.dumps(
            {
                "model_sha256": sha256(args.model.read_bytes()),
                "text": TEXT.name,
                "text_sha256": sha256(TEXT.read_bytes()),
                "versions": {p: importlib.metadata.version(p) for p in ("transformers", "torch", "gguf")},
                "tokens": len(ids),
                "ids_sha256": ids_sha256(ids),
                "context": CONTEXT,
                "scored": scored,
                "perplexity": reference.perplexity(nll, scored),
                "window_nll": [round(x, 4) for x in nll],
                "greedy": [
                    {
                        "prompt": text,
                        "prompt_ids": prompt,
                        "tokens": a.tokens,
                        "margins": [round(m, 4) for m in a.margins],
                    }
                    for text, prompt, a in zip(PROMPTS, prompts, answers, strict=True)
                ],
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )
        .replace(',"', ',\n"')
        .replace("},{", "},\n{")
        + "\n",
        encoding="utf-8",
    )
    print(f"{OUT}: {len(ids)} tokens, perplexity {reference.perplexity(nll, scored):.4f}")


if __name__ == "__main__":
    main()
