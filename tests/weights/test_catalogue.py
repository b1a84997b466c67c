"""The table of published models, against what their makers count, publish and write into config.json."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from herder.chat.load import NAMES
from herder.core.config import ModelConfig
from herder.core.errors import UsageError
from herder.formats.table import BF16, F32, Q4_0, Q4_1, Q4_K, Q8_0
from herder.weights.catalogue import CATALOGUE, published, weight_bytes
from herder.weights.config_hf import config_from_hf
from herder.weights.registry import MODELS
from herder.weights.source import check_shape_sanity, open_model
from tests.weights.test_config_generations import MIXTRAL, MLLAMA_11B, SCOUT

# As printed by the models' makers, image encoders counted; and of one token where there are experts.
PARAMETERS = """
llama-7b 6.738 | llama-13b 13.016 | llama-33b 32.53 | llama-65b 65.29 | llama-2-7b 6.738 | llama-2-13b 13.016
llama-2-70b 68.98 | code-llama-7b 6.74 | code-llama-13b 13.02 | code-llama-34b 33.74 | code-llama-70b 68.98
llama-3-8b 8.030 | llama-3-70b 70.554 | llama-3.1-8b 8.030 | llama-3.1-70b 70.554 | llama-3.1-405b 405.853
llama-3.2-1b 1.236 | llama-3.2-3b 3.213 | llama-3.3-70b 70.554 | llama-guard-1-7b 6.74 | llama-guard-2-8b 8.03
llama-guard-3-8b 8.03 | llama-guard-3-1b 1.236 | llama-guard-3-1b-int4 1.123 | llama-guard-4-12b 12.00
r1-distill-llama-8b 8.03 | r1-distill-llama-70b 70.55 | mistral-7b-v0.1 7.24 | mistral-7b-v0.2 7.24
mistral-7b-v0.3 7.25 | mixtral-8x7b 46.70 | mixtral-8x22b 140.6 | smollm2-135m 0.1345 | smollm2-360m 0.3618
smollm2-1.7b 1.711 | llama-3.2-90b-vision 88.6 | llama-4-scout 108.64 | llama-4-maverick 401.6
"""
ACTIVE = "mixtral-8x7b 12.88 | mixtral-8x22b 39.2 | llama-4-scout 17.17 | llama-4-maverick 17.18"
VISION = "llama-4-scout 0.872 | llama-4-maverick 0.872 | llama-3.2-11b-vision 0.895"


def table(text: str) -> list[tuple[str, str]]:
    return [(entry.split()[0], entry.split()[1]) for line in text.splitlines() for entry in line.split("|") if entry]


def agrees(count: int, printed: str) -> bool:
    """To the printed digits."""
    return round(Decimal(count) / 10**9, len(printed.partition(".")[2])) == Decimal(printed)


@pytest.mark.parametrize(("name", "printed"), table(PARAMETERS))
def test_parameters(name: str, printed: str) -> None:
    assert agrees(published(name).parameters, printed)


@pytest.mark.parametrize(("name", "printed"), table(ACTIVE))
def test_active_parameters(name: str, printed: str) -> None:
    assert agrees(published(name).config.active_parameters, printed)


@pytest.mark.parametrize(("name", "printed"), table(VISION))
def test_parameters_of_the_image_encoder_and_its_projector(name: str, printed: str) -> None:
    assert agrees(published(name).vision_parameters, printed)


# Bytes of 16-bit KV cache per token, every layer full.
@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [("llama-2-7b", 524_288), ("llama-2-13b", 819_200), ("llama-2-70b", 327_680), ("code-llama-34b", 196_608),
     ("llama-3.1-8b", 131_072), ("mistral-7b-v0.1", 131_072), ("llama-3.1-405b", 516_096), ("llama-3.2-1b", 32_768),
     ("llama-3.2-3b", 114_688), ("smollm2-135m", 23_040), ("llama-4-scout", 196_608), ("llama-4-maverick", 196_608)],
)  # fmt: skip
def test_kv_cache(name: str, kv_bytes: int) -> None:
    assert published(name).config.kv_bytes(1) == kv_bytes


def test_every_entry_is_a_model() -> None:
    for name, model in CATALOGUE.items():
        config = model.config
        check_shape_sanity(name, config)
        assert len(config.plan) == config.layers and config.head_dim * config.heads == config.dim
        assert model.chat in {"", *NAMES} and model.released[:2] == "20" and config.name and config.licence
        assert any(plan.experts for plan in config.plan) == (config.experts is not None)
    titles = [model.config.name for model in CATALOGUE.values()]
    assert len(set(titles)) == len(titles)


def test_every_short_name_is_in_the_table() -> None:
    """What can be pulled by a short name is a published model."""
    for entry in MODELS.values():
        words = set(entry.title.replace(",", "").split())
        assert any(set(model.config.name.split()) <= words for model in CATALOGUE.values()), entry.title


def maverick() -> dict[str, Any]:
    """Its config.json differs from Scout's in this and nothing that decides the computation."""
    text = SCOUT["text_config"] | {
        "max_position_embeddings": 1048576, "num_local_experts": 128, "interleave_moe_layer_step": 2,
        "use_qk_norm": False, "rope_scaling": None,
    }  # fmt: skip
    return SCOUT | {"text_config": text}


@pytest.mark.parametrize(
    ("name", "config"),
    [("mixtral-8x7b", MIXTRAL), ("llama-4-scout", SCOUT), ("llama-4-maverick", maverick()),
     ("llama-3.2-11b-vision", MLLAMA_11B)],
)  # fmt: skip
def test_an_entry_is_what_the_published_config_json_says(name: str, config: dict[str, Any]) -> None:
    ours = published(name).config
    read = config_from_hf("config.json", config)
    assert replace(read, name=ours.name, licence=ours.licence, architecture=ours.architecture) == ours


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-4-scout"])
def test_parameters_as_transformers_counts_them(name: str) -> None:
    import torch
    import transformers

    classes = {"mllama": "MllamaForConditionalGeneration", "llama4": "Llama4ForConditionalGeneration"}
    given = MLLAMA_11B
    if name == "llama-4-scout":  # transformers 5 wants a flag where the file has a number
        given = SCOUT | {"text_config": SCOUT["text_config"] | {"attn_temperature_tuning": True}}
    config = transformers.AutoConfig.for_model(**given)
    with torch.device("meta"):
        model = getattr(transformers, classes[given["model_type"]])(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == published(name).parameters


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("llama-3.1-405b", 811.7), ("llama-3.1-70b", 141.1), ("llama-3.1-8b", 16.06), ("llama-4-scout", 217.3),
     ("llama-4-maverick", 803.2)],
)  # fmt: skip
def test_bytes_in_bfloat16(name: str, gigabytes: float) -> None:
    size = weight_bytes(published(name).config, BF16)
    assert size is not None and size / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_bytes_of_a_published_file(smollm2: Path) -> None:
    """The default model, which llama.cpp quantized to Q4_1."""
    config = published("smollm2-135m").config
    with open_model(smollm2) as files:
        assert weight_bytes(config, Q4_1) == sum(tensor.bytes for tensor in files.tensors)
        same = {"name": "", "licence": "", "norm_eps": 1e-5}  # GGUF rounds numbers to float32
        assert replace(files.config, **same) == replace(config, **same)


def test_bytes_of_other_formats() -> None:
    config = published("llama-3.1-8b").config
    matrices = config.parameters - config.dim * (2 * config.layers + 1)
    assert weight_bytes(config, F32) == 4 * config.parameters
    assert weight_bytes(config, Q8_0) == matrices * 34 // 32 + 4 * (config.parameters - matrices)
    ends = 2 * config.vocab * config.dim  # embedding and head, in Q6_K
    size = (matrices - ends) * 18 // 32 + ends * 210 // 256 + 4 * (config.parameters - matrices)
    assert weight_bytes(config, Q4_0) == weight_bytes(config, Q4_K) == size
    assert weight_bytes(published("smollm2-135m").config, Q4_K) is None, "576 are no whole blocks of 256"
    encoder = published("llama-guard-4-12b")
    text = replace(encoder.config, vision=None)
    size = weight_bytes(text, Q4_0)
    assert size is not None and weight_bytes(encoder.config, Q4_0) == size + 2 * encoder.vision_parameters


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match=r"no published model 'llama3\.1-8b': did you mean llama-3\.1-8b"):
        published("llama3.1-8b")
    with pytest.raises(UsageError, match="known are llama-7b, llama-13b"):
        published("zzz")


def test_parameters_count_the_tensors_that_files_must_hold() -> None:
    config: ModelConfig
    for name in ("llama-4-scout", "mixtral-8x7b", "llama-3.2-90b-vision", "smollm2-1.7b"):
        config = replace(published(name).config, vision=None)
        assert weight_bytes(config, F32) == 4 * config.parameters
