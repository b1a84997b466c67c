"""Models for tests of the server: a real tokenizer and chat format over the fake executor."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from herder.chat.format import ChatFormat
from herder.chat.load import load_chat_format
from herder.core.batch import Limits
from herder.core.request import Sampling
from herder.engine.engine import Engine
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor
from herder.serve.config import Config, ModelSpec
from herder.serve.key_gate import open_gate
from herder.serve.log import Log
from herder.serve.models import Models, Need
from herder.serve.server import Server
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from herder.weights.source import open_model
from tests.tiny import tiny_config, write_tiny_gguf
from tests.tiny_vocabulary import VOCAB

LIMITS = Limits(pages=256, context=1024, batch_tokens=256, batch_chunks=64, vocab=VOCAB)
CONFIG = tiny_config(context=LIMITS.context)

# ChatML with a place for tools, and calls as Hermes spells them.
TEMPLATE = (
    '{% if tools %}{{ \'<|im_start|>system\nAnswer with <tool_call>{"name": ..., "arguments": ...}</tool_call>: \' }}'
    "{{ tools | tojson }}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def tiny() -> tuple[Tokenizer, ChatFormat]:
    """A byte-level vocabulary of 288 tokens, and TEMPLATE."""
    with tempfile.TemporaryDirectory() as directory:
        path = write_tiny_gguf(Path(directory) / "tiny.gguf", vocabulary_only=True, add_bos=True).path
        with open_model(path) as files:
            tokenizer = load_tokenizer(files.metadata)
    chat_format = load_chat_format(tokenizer, {"default": TEMPLATE})
    assert chat_format is not None
    return tokenizer, chat_format


def fake_llm(executor: FakeExecutor | None = None, *, sampling: Sampling | None = None) -> LLM:
    """A model whose answers are noise, but the same noise for the same prompt (runtime/fake.py)."""
    tokenizer, chat_format = tiny()
    return LLM(
        engine=Engine(executor or FakeExecutor(LIMITS, dim=CONFIG.dim)),
        tokenizer=tokenizer,
        config=CONFIG,
        chat_format=chat_format,
        chat_sampling=sampling or Sampling(),
    )


def server_of(*llms: LLM, config: Config | None = None, names: tuple[str, ...] = ("tiny", "other")) -> Server:
    """A server whose models are these, in memory from the first request on. Call it with an event loop running."""
    by_name = dict(zip(names, llms, strict=False))
    specs = [ModelSpec(name, source="/nonexistent", aliases=(f"{name}-alias",)) for name in by_name]
    models = Models(specs, lambda spec, need: by_name[spec.name], lambda spec, room: Need(1))
    return Server(config or Config(), models, log=Log(requests=False))


def keyed_server(config: Config) -> Server:
    """A server of one model for those who have keys: of config.keys."""
    server = server_of(fake_llm(), config=config)
    server.gate = open_gate(config)
    return server
