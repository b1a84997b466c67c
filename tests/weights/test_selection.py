"""Which files of a repository are taken, on the names that publishers really use and on names that nobody would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.core.errors import HerderError
from herder.weights.selection import gguf_models, quantization, select


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-2-7b-chat.Q5_K_S.gguf", "Q5_K_S"),
        ("smollm2-1.7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Meta-Llama-3.1-8B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("Llama-3.3-70B-Instruct-Q8_0/Llama-3.3-70B-Instruct-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("Meta-Llama-3-8B-Instruct-fp16.gguf", "FP16"),
        ("model-bf16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("ggml-vocab-llama-bpe.gguf", ""),
    ],
)
def test_quantization_in_a_name(file: str, expected: str) -> None:
    assert quantization(file) == expected


def test_an_exact_quantization_comes_before_a_dynamic_one() -> None:
    files = {"m-Q4_K_M.gguf": 10, "m-UD-Q4_K_M.gguf": 11, "m-UD-Q2_K_XL.gguf": 5}
    assert select(files, "Q4_K_M", "o/m").entry == "m-Q4_K_M.gguf"
    assert select(files, "UD-Q4_K_M", "o/m").entry == "m-UD-Q4_K_M.gguf"
    assert select(files, "q2_k_xl", "o/m").entry == "m-UD-Q2_K_XL.gguf"


def test_two_files_of_one_quantization_are_told_apart_by_name() -> None:
    files = {"a-Q4_0.gguf": 1000, "b-Q4_0.gguf": 2000}
    with pytest.raises(HerderError, match=r"holds 2 files of Q4_0: name one, o/m:a-Q4_0.gguf \(1.00 kB\), o/m:b-Q4_0"):
        select(files, "Q4_0", "o/m")
    assert select(files, "b-Q4_0.gguf", "o/m").entry == "b-Q4_0.gguf"


def test_a_split_model_counts_once_and_must_be_whole() -> None:
    files = {f"m-Q4_0-0000{i}-of-00003.gguf": 10 for i in (1, 2, 3)} | {"m-Q8_0.gguf": 50}
    assert [(len(m.parts), m.missing, m.bytes) for m in gguf_models(files)] == [(3, 0, 30), (1, 0, 50)]
    assert select(files, "Q4_0", "o/m").files == tuple(sorted(files)[:3])
    del files["m-Q4_0-00002-of-00003.gguf"]
    with pytest.raises(HerderError, match=r"lacks 1 of the parts of m-Q4_0-00001-of-00003.gguf"):
        select(files, "Q4_0", "o/m")


def test_meta_and_mistral_repositories_are_not_fetched_twice() -> None:
    meta = {"config.json": 1, "model-00001-of-00002.safetensors": 9, "model-00002-of-00002.safetensors": 9}
    extra = {"original/consolidated.00.pth": 18, "original/params.json": 1, "consolidated.safetensors": 18}
    side = {"model.safetensors.index.json": 1, "tokenizer.json": 1, "tokenizer_config.json": 1, "USE_POLICY.md": 1}
    assert set(select({**meta, **extra, **side}, "", "o/m").files) == {*meta, *side} - {"USE_POLICY.md"}
    with pytest.raises(HerderError, match="has 1 of 2 shards"):
        select({"config.json": 1, "model-00001-of-00002.safetensors": 9}, "", "o/m")


def test_meta_and_mistral_repositories_without_another_form() -> None:
    side = {"params.json": 1, "tokenizer.model": 1}
    meta = {"consolidated.00.pth": 9, "consolidated.01.pth": 9, **side}
    extra = {"checklist.chk": 1, "LICENSE": 1, "USE_POLICY.md": 1}
    shards = ("consolidated.00.pth", "consolidated.01.pth")
    assert select({**meta, **extra}, "", "o/m") == ((*shards, "tokenizer.model", "params.json"), None)
    scales = {"fp8_scales_0.pt": 1, "fp8_scales_1.pt": 1}
    assert set(select({**meta, **scales}, "", "o/m").files) == {*meta, *scales}
    mistral = {"consolidated.safetensors": 9, "params.json": 1, "tekken.json": 1}
    assert set(select(mistral, "", "o/m").files) == {*mistral}
    assert set(select({**mistral, "config.json": 1}, "", "o/m").files) == {*mistral, "config.json"}
    with pytest.raises(HerderError, match=r"lacks one of the files before consolidated\.01\.pth"):
        select({file: 1 for file in meta if "00" not in file}, "", "o/m")
    with pytest.raises(HerderError, match="has 1 of 2 parts"):
        select({"params.json": 1, "consolidated-00002-of-00002.safetensors": 1}, "", "o/m")
    with pytest.raises(HerderError, match="has pickled weights only"):
        select({"consolidated.00.pth": 9}, "", "o/m")
    with pytest.raises(HerderError, match=r"only in Meta's own format, in original/: download that folder"):
        select({"config.json": 1, "original/params.json": 1, "original/consolidated.00.pth": 9}, "", "o/m")


NAMES = [
    *("config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors", "README.md"),
    *("adapter_model.safetensors", "pytorch_model.bin", "x.pth", "mmproj-f16.gguf", "imatrix.gguf", ".gguf"),
    *("m-Q4_0.gguf", "m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf", "-00001-of-00001.gguf"),
    *("sub/m-F16.gguf", "params.json", "consolidated.00.pth", "consolidated.safetensors", "original/params.json"),
]
names = st.sampled_from(NAMES) | st.text(max_size=12)
asked = st.sampled_from(["", "Q4_0", "Q4_K_M", "m-Q4_0.gguf", "F16", "?"])


@given(st.dictionaries(names, st.integers(0, 10**12)), asked)
def test_whatever_a_repository_holds(files: dict[str, int], wanted: str) -> None:
    try:
        chosen = select(files, wanted, "o/m")
    except HerderError as error:
        assert "o/m" in str(error) and "\n" not in str(error).replace("".join(files), "")
        return
    assert chosen.files and set(chosen.files) <= set(files)
    assert len(set(chosen.files)) == len(chosen.files)
    assert not [file for file in chosen.files if file.endswith((".bin", "x.pth")) or "mmproj" in file]
    assert chosen.entry is None or (chosen.entry == chosen.files[0] and chosen.entry.lower().endswith(".gguf"))
    # What was chosen is complete by itself: the cache, which holds only that, chooses the same.
    assert select({file: files[file] for file in chosen.files}, wanted, "o/m") == chosen
