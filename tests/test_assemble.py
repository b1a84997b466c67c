from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import herder
from herder.assemble import CHAT_SAMPLING, Background, load, native_bytes, recommended_sampling
from herder.core import machine
from herder.core.errors import (
    ModelFileError,
    ModelNotFound,
    OutOfMemory,
    TemplateError,
    UnsupportedModel,
    UsageError,
)
from herder.core.request import Sampling
from herder.formats.table import FORMATS
from herder.runtime.native import NativeExecutor, load_model
from herder.weights.source import open_model
from tests.tiny import tiny_config, write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral


def test_wrong_arguments_are_refused_before_anything_is_opened() -> None:
    with pytest.raises(UsageError, match="runtime is 'jax': must be 'native' or 'torch'"):
        load("nowhere", runtime="jax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dtype is 'float8': runtime 'torch' has 'auto', 'float32'"):
        load("nowhere", runtime="torch", dtype="float8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"dtype is 'bfloat16'.*runtime='torch' has it"):
        load("nowhere", dtype="bfloat16")
    with pytest.raises(UsageError, match="device is 'cuda': runtime 'native' runs on the CPU"):
        load("nowhere", device="cuda")
    with pytest.raises(UsageError, match="prompt_dtype is 'int4': must be one of 'auto', 'int8', 'bfloat16'"):
        load("nowhere", prompt_dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="prompt_dtype is 'int8': runtime 'torch' has none, leave it at 'auto'"):
        load("nowhere", runtime="torch", prompt_dtype="int8")
    with pytest.raises(UsageError, match="prompt_dtype is 'int8': runtime 'torch' has none, leave it at 'auto'"):
        load("nowhere", runtime="torch", dtype="float32", prompt_dtype="int8")
    with pytest.raises(UsageError, match="prompt_dtype is 'bfloat16': float32 computes prompts in float32"):
        load("nowhere", dtype="float32", prompt_dtype="bfloat16")
    with pytest.raises(UsageError, match="threads is -1"):
        load("nowhere", threads=-1)
    with pytest.raises(UsageError, match="speculate is -1"):
        load("nowhere", speculate=-1)
    with pytest.raises(ModelNotFound):
        load("./nowhere.gguf")


# A model from files to answers, on the native core --------------------------------------------------------------------
@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", ffn_dim=128).path


def test_load_joins_everything(path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with herder.load(path, threads=1, progress=lambda *event: seen.append(event)) as llm:
        assert (llm.context, llm.name, llm.config.layers) == (256, "Tiny", 2)
        answer = llm.chat("hello", max_tokens=20, seed=3, ignore_eos=True)
        assert answer.usage.completion_tokens == 20
        assert answer.message is not None and answer.message.role == "assistant"
        prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        ids = llm.tokenizer.encode(prompt, special=True)
        assert answer.usage.prompt_tokens == len(ids)
        same = llm.generate(ids, max_tokens=20, seed=3, temperature=0.6, top_p=0.9, ignore_eos=True)
        assert same.tokens == answer.tokens
        assert llm.logits([1, 2, 3]).shape == (3, llm.config.vocab)
        assert len(llm.score("hello you")) == len(llm.tokenizer.encode("hello you")) - 1
        assert llm.embed(["hello", "you"]).shape == (2, llm.config.dim)
    assert seen[-1][0] == "Loading" and seen[-1][1] == seen[-1][2]
    with pytest.raises(UsageError, match="the engine is closed"):
        llm.generate("x")


def test_the_same_answer_with_speculation_and_another_context(path: Path) -> None:
    with herder.load(path) as plain, herder.load(path, speculate=4, context=200) as fast:
        for seed in range(3):
            one, other = (llm.generate("the " * 20, max_tokens=100, temperature=0.3, seed=seed, ignore_eos=True)
                          for llm in (plain, fast))  # fmt: skip
            assert one.tokens == other.tokens


def test_a_template_of_ones_own(path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}!"
    with herder.load(path, template=template) as llm:
        assert llm.chat("hello", max_tokens=1).usage.prompt_tokens == len(llm.tokenizer.encode("hello!"))
    with pytest.raises(TemplateError):
        herder.load(path, template="{% for %}")


def test_a_broken_template_in_the_file_refuses_chats_and_nothing_else(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template="{% for %}").path
    with herder.load(path) as llm:
        assert llm.generate("hello", max_tokens=1, ignore_eos=True).tokens
        with pytest.raises(TemplateError):
            llm.chat("hello")


def test_a_directory_of_safetensors(tmp_path: Path) -> None:
    made = write_tiny_hf(tmp_path / "tiny", dtype="BF16", generation_config={"do_sample": True, "top_k": 7})
    with herder.load(made.path, dtype="float32") as llm:
        assert llm.chat_sampling == Sampling(top_k=7)
        assert len(llm.chat("hello", max_tokens=5, ignore_eos=True).tokens) == 5


@pytest.mark.oracle
def test_both_runtimes_give_the_same_logits(path: Path, tmp_path: Path) -> None:
    made = write_tiny_hf(tmp_path / "tiny")
    for model in (path, made.path):
        with (
            herder.load(model, dtype="float32") as native,
            herder.load(model, runtime="torch", device="cpu", dtype="float32") as torch,
        ):
            ids = list(range(3, 90))
            np.testing.assert_allclose(torch.logits(ids), native.logits(ids), atol=1e-4)
            assert torch.generate(ids, max_tokens=9).tokens == native.generate(ids, max_tokens=9).tokens


def test_a_store_for_the_layers_of_bounded_reach_changes_nothing(tmp_path: Path) -> None:
    made = write_tiny_hf(tmp_path / "llama4", **llama4(chunk=48, context=4096))
    ids = [index * 7 % 200 for index in range(300)]
    with herder.load(made.path, context=4096) as two, herder.load(made.path, context=2048) as one:
        assert (one.engine.limits.local_pages, two.engine.limits.pages) == (0, 128)
        # A chunk touches 3 pages, a batch 16, and 64 sequences may run.
        assert two.engine.limits.local_pages == 3 + 16 + 64
        options = {"max_tokens": 200, "temperature": 1.0, "seed": 1, "ignore_eos": True}
        assert two.generate(ids, **options).tokens == one.generate(ids, **options).tokens
        assert two.generate(ids, **options).usage.cached_tokens == 288
        assert two.logits(ids).tobytes() == one.logits(ids).tobytes()
        assert two.engine.stats().local_pages_used == 0


@pytest.mark.parametrize(("form", "tied"), [("Q4_1", True), *((form.name, False) for form in FORMATS)])
def test_the_bytes_of_packed_weights(tmp_path: Path, form: str, tied: bool) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", formats=form, dim=256, ffn_dim=512, tied=tied).path
    for dtype in ("auto", "float32"):
        with open_model(path) as files:
            executor = load_model(files, context=32, kv_pages=1, compute=dtype)
            held = executor.memory().weights
            executor.close()
            assert native_bytes(files, dtype).resident == pytest.approx(held, rel=1e-3)


def test_of_lazy_experts_a_models_need_counts_those_of_one_token(tmp_path: Path) -> None:
    config = tiny_config(**mixtral(experts=8, active=2))
    made = write_tiny_hf(tmp_path / "mixtral", dtype="BF16", **mixtral(experts=8, active=2))
    with open_model(made.path) as files:
        need = native_bytes(files)
        assert need.experts == 2 * 3 * 8 * config.layers * config.dim * 96
        assert need.active == need.experts // 4
        # routers and norms are float32 in the core, and the router's rows padded to 16
        assert 0 < need.resident + need.experts - sum(tensor.bytes for tensor in files.tensors) < 8192
        wide = native_bytes(files, "float32")
        assert 0 < wide.resident + wide.experts - 4 * config.parameters < 8192
        assert wide.experts == 2 * need.experts


@pytest.mark.oracle
def test_memory_is_counted_in_the_type_that_pytorch_computes_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = machine.Memory(1 << 20, 300_000, False)
    monkeypatch.setattr(machine, "memory", lambda: tight)
    with pytest.raises(OutOfMemory, match="the weights take 370 kB"):
        herder.load(path, runtime="torch", device="cpu", dtype="float32", context=256)
    with pytest.raises(UsageError, match="device is 'tpu'"):
        herder.load(path, runtime="torch", device="tpu")


def test_torch_that_is_not_installed_is_said_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import herder.runtime

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "herder.runtime.torch", raising=False)
    monkeypatch.delattr(herder.runtime, "torch", raising=False)
    with pytest.raises(UnsupportedModel, match=r"^runtime 'torch' needs PyTorch: pip install 'herder\[torch\]'$"):
        herder.load(path, runtime="torch")


def test_a_failure_beside_the_packing_frees_the_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[NativeExecutor] = []
    monkeypatch.setattr("herder.text.load.load_tokenizer", lambda source: 1 / 0)
    monkeypatch.setattr(NativeExecutor, "close", lambda self: closed.append(self))
    with pytest.raises(ZeroDivisionError):
        herder.load(path)
    assert len(closed) == 1


def test_a_vocabulary_has_nothing_to_run(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", vocabulary_only=True).path
    with pytest.raises(UnsupportedModel, match="holds only a vocabulary"):
        herder.load(path)


def test_background_gives_what_the_function_gives() -> None:
    assert Background(lambda: threading.current_thread().name, "elsewhere").result() == "elsewhere"
    with pytest.raises(ZeroDivisionError):
        Background(lambda: 1 / 0, "elsewhere").result()


def test_an_abandoned_background_discards_its_value() -> None:
    discarded: list[int] = []
    Background(lambda: 5, "elsewhere").abandon(discarded.append)
    assert discarded == [5]
    Background(lambda: 1 / 0, "elsewhere").abandon(lambda value: discarded.append(6))
    assert discarded == [5]


class Files:
    """As much of ModelFiles as recommended_sampling looks at."""

    path = "here"

    def __init__(self, **metadata: object) -> None:
        self.metadata = {key.replace("__", "."): value for key, value in metadata.items()}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, CHAT_SAMPLING),
        ({"generation_config__json": {"temperature": 0.2}}, CHAT_SAMPLING),  # without do_sample it means nothing
        ({"generation_config__json": {"do_sample": True}}, CHAT_SAMPLING),
        (
            {"generation_config__json": {"do_sample": True, "temperature": 0.2, "top_k": 50, "top_p": None}},
            Sampling(temperature=0.2, top_k=50),
        ),
        (
            {"general__sampling__temp": 0.5, "general__sampling__min_p": 0.1, "general__sampling__mirostat": 2},
            Sampling(temperature=0.5, min_p=0.1),
        ),
    ],
)
def test_the_makers_recommendation_is_the_default_of_chats(metadata: dict[str, object], expected: Sampling) -> None:
    assert recommended_sampling(Files(**metadata)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, "hot", [0.6]])
def test_a_recommendation_that_is_none_is_refused(value: object) -> None:
    files = Files(generation_config__json={"do_sample": True, "temperature": value})
    with pytest.raises(ModelFileError, match="here recommends a sampling that is none"):
        recommended_sampling(files)  # type: ignore[arg-type]
