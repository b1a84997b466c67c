"""Fetching from a hub, against a fake one that speaks the protocol, with the real huggingface_hub as second opinion."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from herder.core import machine
from herder.core.errors import ModelNotFound, NetworkError, StorageError, UnsupportedModel
from herder.weights import hub, hubcache, store
from herder.weights.registry import HubName
from tests.weights.fake_hub import FakeHub, Repository

GGUF = bytes(range(256)) * 400
OTHER = bytes(reversed(GGUF))
CONFIG = b'{"model_type": "llama"}'


def gguf_repository(**changes: object) -> Repository:
    files = {"README.md": b"card", "tiny-Q4_K_M.gguf": GGUF, "tiny-Q8_0.gguf": OTHER, "mmproj-tiny-f16.gguf": OTHER}
    return Repository(files, **changes)  # type: ignore[arg-type]


def safetensors_repository() -> Repository:
    return Repository(
        {
            "config.json": CONFIG,
            "generation_config.json": b"{}",
            "tokenizer.json": b"{}" * 800,
            "tokenizer_config.json": b"{}",
            "model-00001-of-00002.safetensors": GGUF,
            "model-00002-of-00002.safetensors": OTHER,
            "model.safetensors.index.json": b'{"weight_map": {}}',
            "pytorch_model.bin": GGUF,
            "original/consolidated.00.pth": GGUF,
            "consolidated.safetensors": GGUF + OTHER,
            "README.md": b"card",
            ".gitattributes": b"",
        }
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "HERDER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "home"))
    # huggingface_hub's own constants are read when it is imported: nothing of the user's may reach these tests.
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_pause", lambda stop, attempts: None)
    monkeypatch.setattr(hub, "CHUNK", 10_000)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with FakeHub({"o/gguf": gguf_repository(), "o/llama": safetensors_repository()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def no_partials(tmp_path: Path) -> bool:
    return not [p for p in tmp_path.rglob("*") if p.name.endswith((hubcache.PARTIAL, ".incomplete", ".partial"))]


def test_one_quantization_is_fetched_and_nothing_else(fake: FakeHub, tmp_path: Path) -> None:
    path = store.resolve("o/gguf:Q4_K_M")
    assert path.read_bytes() == GGUF
    assert path.name == "tiny-Q4_K_M.gguf"
    assert set(hubcache.files(path.parent)) == {"tiny-Q4_K_M.gguf"}
    assert no_partials(tmp_path)


def test_what_is_present_is_used_without_asking_the_network(fake: FakeHub) -> None:
    path = store.resolve("o/gguf:q4_k_m")
    before = len(fake.log)
    assert store.resolve("o/gguf:Q4_K_M") == path
    assert store.resolve("o/gguf:tiny-Q4_K_M.gguf", offline=True) == path
    assert store.resolve("o/gguf", offline=True) == path  # the only one here
    assert store.resolve(f"{fake.endpoint and 'https://huggingface.co'}/o/gguf", offline=True) == path
    assert len(fake.log) == before


def test_safetensors_come_with_what_they_need_and_never_pickled(fake: FakeHub) -> None:
    path = store.resolve("o/llama")
    assert path.is_dir()
    assert set(hubcache.files(path)) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }


def test_huggingface_hub_finds_what_we_fetched(fake: FakeHub) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    path = store.resolve("o/llama")
    cache = machine.hub_cache()
    theirs = hf_hub_download("o/llama", "config.json", cache_dir=cache, local_files_only=True, endpoint=fake.endpoint)
    assert Path(theirs) == path / "config.json"
    before = len(fake.requested("resolve")) + len(fake.requested("cdn"))
    snapshot = snapshot_download(
        "o/llama", cache_dir=cache, allow_patterns=["*.safetensors", "*.json"], ignore_patterns=["con*.safetensors"],
        endpoint=fake.endpoint,
    )  # fmt: skip
    assert Path(snapshot) == path
    assert len(fake.requested("resolve")) + len(fake.requested("cdn")) == before, "fetched again what was there"
    report = scan_cache_dir(cache)
    assert not report.warnings
    assert {repo.repo_id for repo in report.repos} == {"o/llama"}


def test_we_find_what_huggingface_hub_fetched(fake: FakeHub) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download

    cache = machine.hub_cache()
    theirs = hf_hub_download("o/gguf", "tiny-Q8_0.gguf", cache_dir=cache, endpoint=fake.endpoint)
    assert store.find("o/gguf:Q8_0") == Path(theirs)
    assert store.find("o/gguf:Q4_K_M") is None
    hf_hub_download("o/llama", "config.json", cache_dir=cache, endpoint=fake.endpoint)
    assert store.find("o/llama") is None, "a configuration alone is no model"
    whole = snapshot_download("o/llama", cache_dir=cache, endpoint=fake.endpoint)
    assert store.find("o/llama") == Path(whole)
    assert [model.name for model in store.list_models()] == ["o/llama", "o/gguf:Q8_0"] or {
        model.name for model in store.list_models()
    } == {"o/llama", "o/gguf:Q8_0"}


def test_a_connection_that_breaks_is_continued(fake: FakeHub, tmp_path: Path) -> None:
    fake.cut["tiny-Q4_K_M.gguf"] = 60_000
    assert store.resolve("o/gguf:Q4_K_M").read_bytes() == GGUF
    assert [headers.get("range") for headers in fake.requested("cdn")] == ["bytes=0-", "bytes=60000-"]
    assert no_partials(tmp_path)


def test_an_interrupted_fetch_is_continued_by_the_next(fake: FakeHub, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    fake.cut["tiny-Q4_K_M.gguf"] = 50_000
    with pytest.raises(KeyboardInterrupt):
        store.resolve("o/gguf:Q4_K_M", progress=interrupt)
    blobs = hubcache.repository("o/gguf") / "blobs"
    partial = next(blobs.glob(f"*{hubcache.PARTIAL}"))
    partial.write_bytes(GGUF[:30_000])
    assert store.find("o/gguf:Q4_K_M") is None, "half a model is not a model"
    fake.log.clear()
    seen: list[tuple[int, int | None]] = []
    path = store.resolve("o/gguf:Q4_K_M", progress=lambda what, done, total: seen.append((done, total)))
    assert path.read_bytes() == GGUF
    assert [headers.get("range") for headers in fake.requested("cdn")] == ["bytes=30000-"]
    assert seen[-1] == (len(GGUF), len(GGUF))
    assert no_partials(tmp_path)


def test_a_server_that_ignores_ranges_is_read_from_the_start(fake: FakeHub) -> None:
    fake.ignore_range = True
    fake.cut["tiny-Q4_K_M.gguf"] = 60_000
    assert store.resolve("o/gguf:Q4_K_M").read_bytes() == GGUF


def test_a_server_that_always_breaks_is_given_up(fake: FakeHub) -> None:
    fake.fail["/cdn/"] = 503
    with pytest.raises(NetworkError, match=r"answered 503 for o/gguf: try `herder pull o/gguf:Q4_K_M` again later"):
        store.resolve("o/gguf:Q4_K_M")


def test_a_server_that_breaks_without_a_byte_is_given_up(fake: FakeHub) -> None:
    store.resolve("o/llama")
    fake.always_cut["tiny-Q4_K_M.gguf"] = 25_000  # every answer ends early; after four there is nothing left to fail
    assert store.resolve("o/gguf:Q4_K_M").read_bytes() == GGUF
    fake.always_cut["tiny-Q8_0.gguf"] = -len(OTHER)  # nothing ever arrives
    with pytest.raises(NetworkError, match=r"o/gguf could not be fetched from http"):
        store.resolve("o/gguf:Q8_0")


def test_a_wrong_byte_is_found_and_the_file_deleted(fake: FakeHub, tmp_path: Path) -> None:
    fake.corrupt.add("tiny-Q4_K_M.gguf")
    with pytest.raises(StorageError, match=r"tiny-Q4_K_M.gguf came with checksum .* it was deleted"):
        store.resolve("o/gguf:Q4_K_M")
    assert no_partials(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size == len(GGUF)]
    fake.corrupt.clear()
    assert store.resolve("o/gguf:Q4_K_M").read_bytes() == GGUF


def test_a_wrong_byte_in_a_small_file_is_found(fake: FakeHub) -> None:
    fake.corrupt.add("config.json")
    with pytest.raises(StorageError, match=r"config.json came with checksum"):
        store.resolve("o/llama")
    assert store.find("o/llama") is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_where_to_accept_the_licence(fake: FakeHub, status: int) -> None:
    fake.repositories["o/gguf"].gated = status
    with pytest.raises(NetworkError) as caught:
        store.resolve("o/gguf:Q4_K_M")
    message = str(caught.value)
    assert f"accept the licence at {fake.endpoint}/o/gguf" in message
    assert "hf auth login" in message and "HF_TOKEN" in message
    assert "\n" not in message


def test_a_token_is_used_for_the_hub_only(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.repositories["o/gguf"].gated = 401
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert store.resolve("o/gguf:Q4_K_M").read_bytes() == GGUF
    assert {headers.get("authorization") for headers in fake.requested("resolve")} == {"Bearer hf_good"}
    assert {headers.get("authorization") for headers in fake.requested("cdn")} == {None}


def test_a_private_or_missing_model(fake: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match=r"shows no model o/none: check the spelling; if it is private"):
        store.resolve("o/none")
    fake.repositories["o/gguf"].private = True
    with pytest.raises(ModelNotFound, match=r"shows no model o/gguf"):
        store.resolve("o/gguf:Q4_K_M")


def test_a_missing_revision(fake: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="o/gguf has no revision v9"):
        store.resolve("o/gguf@v9:Q4_K_M")


def test_a_revision_is_kept_apart(fake: FakeHub) -> None:
    fake.repositories["o/gguf"].revisions = ("main", "refs/pr/1")
    path = store.resolve("o/gguf@refs/pr/1:Q4_K_M")
    assert store.find("o/gguf@refs/pr/1:Q4_K_M") == path
    assert store.find("o/gguf:Q4_K_M") is None, "main was never fetched"
    assert store.find(f"o/gguf@{'c' * 40}:Q4_K_M") == path
    assert store.find(f"o/gguf@{'c' * 8}:Q4_K_M") == path


def test_pull_follows_the_newest_commit_and_keeps_the_old_until_it_is_complete(fake: FakeHub) -> None:
    old = store.resolve("o/gguf:Q4_K_M")
    repository = fake.repositories["o/gguf"]
    repository.files["tiny-Q4_K_M.gguf"], repository.commit = OTHER + GGUF, "d" * 40
    fake.corrupt.add("tiny-Q4_K_M.gguf")
    with pytest.raises(StorageError):
        store.pull("o/gguf:Q4_K_M")
    assert store.find("o/gguf:Q4_K_M") == old and old.read_bytes() == GGUF
    fake.corrupt.clear()
    new = store.pull("o/gguf:Q4_K_M")
    assert new.read_bytes() == OTHER + GGUF
    assert store.find("o/gguf:Q4_K_M") == new


def test_an_ambiguous_name_lists_the_choices(fake: FakeHub) -> None:
    with pytest.raises(ModelNotFound) as caught:
        store.resolve("o/gguf")
    assert str(caught.value) == (
        "o/gguf holds 2 GGUF files: name one of them, o/gguf:Q4_K_M (102 kB), o/gguf:Q8_0 (102 kB)"
    )
    with pytest.raises(ModelNotFound, match=r"o/gguf holds no GGUF file Q5_K_M: it has o/gguf:Q4_K_M"):
        store.resolve("o/gguf:Q5_K_M")


def test_a_split_model_is_fetched_whole(fake: FakeHub) -> None:
    parts = {f"big/m-Q4_0-0000{i}-of-00003.gguf": GGUF + bytes([i]) for i in (1, 2, 3)}
    fake.repositories["o/split"] = Repository({**parts, "m-Q8_0.gguf": OTHER})
    path = store.resolve("o/split:Q4_0")
    assert path.name == "m-Q4_0-00001-of-00003.gguf"
    assert {p.name for p in path.parent.iterdir()} == {name.rpartition("/")[2] for name in parts}
    path.with_name("m-Q4_0-00002-of-00003.gguf").unlink()
    assert store.find("o/split:Q4_0") is None, "a part is missing"
    assert store.resolve("o/split:Q4_0") == path


def test_pickled_weights_and_adapters_are_refused(fake: FakeHub) -> None:
    fake.repositories["o/pickle"] = Repository({"config.json": CONFIG, "pytorch_model.bin": GGUF})
    fake.repositories["o/adapter"] = Repository({"adapter_config.json": b"{}", "adapter_model.safetensors": GGUF})
    with pytest.raises(UnsupportedModel, match="pickled weights only"):
        store.resolve("o/pickle")
    with pytest.raises(UnsupportedModel, match="is an adapter"):
        store.resolve("o/adapter")


def test_files_that_would_leave_the_cache_are_not_taken(fake: FakeHub, tmp_path: Path) -> None:
    fake.repositories["o/evil"] = Repository(
        {"../../../x-Q4_0.gguf": GGUF, "/etc/y-Q8_0.gguf": GGUF, "ok-Q2_K.gguf": GGUF}
    )
    path = store.resolve("o/evil")
    assert path.name == "ok-Q2_K.gguf"
    assert not list(tmp_path.rglob("x-Q4_0.gguf"))


def test_offline_names_the_command(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=r"\(--offline\): run `herder pull o/gguf:Q4_K_M` where there is a network"):
        store.resolve("o/gguf:Q4_K_M", offline=True)
    monkeypatch.setenv("HERDER_OFFLINE", "1")
    with pytest.raises(NetworkError, match=re.escape("HERDER_OFFLINE or HF_HUB_OFFLINE")):
        store.resolve("o/gguf:Q4_K_M")
    assert fake.log == []


def test_no_hub_there(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(NetworkError, match=r"o/gguf could not be fetched from http://127.0.0.1:\d+ \("):
            store.resolve("o/gguf:Q4_K_M")


def test_something_else_than_a_hub(fake: FakeHub) -> None:
    fake.fail["/api/"] = 200
    with pytest.raises(NetworkError, match="does not answer as a Hugging Face hub"):
        store.resolve("o/gguf:Q4_K_M")


def test_a_disk_that_is_too_small_is_found_before_the_download(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 100_000)
    with pytest.raises(StorageError, match=r"o/gguf:Q4_K_M needs 102 kB and has 100 kB free in .*HF_HUB_CACHE"):
        store.resolve("o/gguf:Q4_K_M")
    assert not fake.requested("resolve")


def test_a_disk_that_fills_up_is_said_with_numbers_and_left_clean(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: object, file: object, done: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub._Transfer, "report", full)
    with pytest.raises(StorageError, match=r"the disk filled up while storing o/gguf:Q4_K_M, which needs 102 kB"):
        store.resolve("o/gguf:Q4_K_M")
    assert no_partials(tmp_path)


def test_two_at_once_fetch_once(fake: FakeHub) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(store.resolve("o/llama"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1 and len(results) == 2
    assert len(fake.requested("resolve")) == 6, "each file once, and two that are equal once together"


def test_remove_frees_what_no_one_else_needs(fake: FakeHub, tmp_path: Path) -> None:
    store.resolve("o/gguf:Q4_K_M")
    kept = store.resolve("o/gguf:Q8_0")
    with pytest.raises(ModelNotFound, match="o/gguf holds 2 models here"):
        store.remove("o/gguf")
    assert store.remove("o/gguf:Q4_K_M") == len(GGUF)
    assert store.find("o/gguf:Q4_K_M") is None
    assert store.find("o/gguf:Q8_0") == kept and kept.read_bytes() == OTHER
    assert store.remove("o/gguf") == len(OTHER)
    assert not hubcache.repository("o/gguf").exists()
    with pytest.raises(ModelNotFound, match="o/gguf is not in"):
        store.remove("o/gguf")


def test_remove_leaves_other_revisions(fake: FakeHub) -> None:
    store.resolve("o/llama")
    fake.repositories["o/llama"].commit = "d" * 40
    fake.repositories["o/llama"].revisions = ("main", "next")
    store.resolve("o/llama@next")
    assert store.remove("o/llama@next") == 0, "every byte is shared with main"
    assert store.find("o/llama") is not None
    assert store.remove("o/llama") > len(GGUF) + len(OTHER)


def test_list_shows_each_model_with_its_size(fake: FakeHub) -> None:
    store.resolve("o/gguf:Q4_K_M")
    store.resolve("o/llama")
    found = {model.name: model for model in store.list_models()}
    assert set(found) == {"o/gguf:Q4_K_M", "o/llama"}
    assert found["o/gguf:Q4_K_M"].bytes == len(GGUF)
    assert found["o/llama"].origin == "hub cache"
    assert all(store.find(name) == model.path for name, model in found.items())


def test_where_links_are_not_possible_the_files_themselves_are_placed(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: object, target_is_directory: bool = False) -> None:
        raise OSError("no symbolic links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = store.resolve("o/gguf:Q4_K_M")
    assert path.read_bytes() == GGUF and not path.is_symlink()
    fake.log.clear()
    store.pull("o/gguf:Q4_K_M")
    assert not fake.requested("resolve"), "present, so not fetched again"
    assert hub.fetch(HubName("o/gguf", file="Q4_K_M"), "x", lambda *_: None) == path
