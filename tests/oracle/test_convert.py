"""Converted models, run by the programs whose format it is: transformers, Meta's module, gguf's reader in test_convert.

Each begins with weights that transformers has made; the logits after the conversion are those before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.convert.convert import Kind, convert
from herder.weights.source import open_model
from tests.oracle import checkpoints, ours
from tests.oracle.meta_modules import one_rank
from tests.tiny import write_tiny_hf

pytestmark = pytest.mark.oracle

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 250, 40)]


def converted(source: Path, target: Path, kind: Kind | None = None) -> Path:
    with open_model(source) as files:
        convert(files, target, kind=kind)
    return target


def logits(path: Path) -> np.ndarray[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def llama(path: Path) -> None:
    write_tiny_hf(path, tied=False, kv_heads=1)


@pytest.mark.parametrize("make", [llama, checkpoints.mixtral, "llama4"], ids=["llama", "mixtral", "llama4"])
def test_transformers_runs_what_came_back_from_gguf(tmp_path: Path, make: Callable[..., Any] | str) -> None:
    if make == "llama4":  # GGUF knows the published chunk and temperature only
        checkpoints.llama4_text(tmp_path / "source", attention_chunk_size=8192, floor_scale=8192)
    else:
        assert callable(make)
        make(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "model.gguf")
    converted(tmp_path / "model.gguf", tmp_path / "back")
    np.testing.assert_array_equal(logits(tmp_path / "back"), logits(tmp_path / "source"))
    with ours.torch_executor(tmp_path / "model.gguf", context=96) as model:
        np.testing.assert_allclose(ours.logits(model, IDS), logits(tmp_path / "source"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [checkpoints.llama4, checkpoints.mllama, checkpoints.mllama_text])
def test_models_with_image_encoders_are_written_anew(tmp_path: Path, make: Callable[..., Any]) -> None:
    """In shards, tensor by tensor what transformers saved."""
    from safetensors.torch import load_file

    make(tmp_path / "source", dtype="bfloat16")
    with open_model(tmp_path / "source") as files:
        convert(files, tmp_path / "shards", kind="hf", shard_size=100_000)
    parts = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(parts) > 1
    found = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    wanted = load_file(tmp_path / "source/model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].equal(tensor), name
    with open_model(tmp_path / "source") as a, open_model(tmp_path / "shards") as b:
        assert replace(a.config, name="") == replace(b.config, name="")


def test_transformers_reads_the_tokenizer_that_came_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = write_tiny_hf(tmp_path / "source").path
    converted(source, tmp_path / "model.gguf")
    converted(tmp_path / "model.gguf", tmp_path / "back")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (source, tmp_path / "back"))
    for text in ("The hen and the otter, in 1999.", "  a\n\n\tb", "\u00e9\u4f60\U0001f999", "<|im_end|> said"):
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    chat = [{"role": "user", "content": "hen"}]
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    assert (after.bos_token, after.eos_token) == (before.bos_token, before.eos_token)


@pytest.mark.parametrize("tied", [False, True])
def test_metas_module_runs_what_is_in_its_format(tmp_path: Path, tied: bool) -> None:
    import torch
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    source = write_tiny_hf(tmp_path / "source", tied=tied, norm_eps=1e-6).path
    (source / "original").mkdir()
    (source / "original/tokenizer.model").write_bytes(b"the model's own file")
    meta = converted(source, tmp_path / "meta", "meta")
    assert (meta / "tokenizer.model").read_bytes() == b"the model's own file"
    params = json.loads((meta / "params.json").read_text())
    state = torch.load(meta / "consolidated.00.pth", weights_only=True)
    with one_rank(tmp_path):
        model = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=len(IDS)))
        model.load_state_dict(state, strict=True)
        found = model(torch.tensor([IDS]), 0)[0].numpy()
    np.testing.assert_allclose(found, logits(source), atol=1e-4, rtol=0)
