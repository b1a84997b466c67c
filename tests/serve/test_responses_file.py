"""The file of stored responses: opened at the start, looked at by --check, and switched off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from herder.cli.__main__ import main
from herder.core.errors import StorageError
from herder.serve import lifecycle
from herder.serve.config import OFF, Config, ModelSpec, parse_config
from herder.serve.server import Server
from herder.serve.store import ResponseStore, check_store
from tests.serve.test_app import Client, run
from tests.serve.test_database import foreign

ASK = {"model": "tiny", "input": "hello", "max_output_tokens": 4}


def broken(folder: Path) -> dict[str, Path]:
    """Paths at which no responses can be stored, by what the error says."""
    (folder / "text").write_text("no database " * 100)
    (folder / "text").chmod(0o600)
    (folder / "open").touch(0o644)
    return {
        "is a database, but not one of stored responses": foreign(folder / "other.sqlite"),
        "is no file of stored responses": folder / "text",
        "can be reached by other users": folder / "open",
        "cannot be": folder / "text" / "within",
    }


def test_a_file_that_cannot_be_used_fails_at_the_start_and_in_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = ModelSpec("nowhere", "/nonexistent.gguf", preload=True)  # nobody waits for a model to load first
    for words, path in broken(tmp_path).items():
        config = Config(port=0, models=(nowhere,), responses=str(path), offline=True)
        with pytest.raises(StorageError, match=words):
            check_store(path)
        with pytest.raises(StorageError, match=words):
            lifecycle.serve(config, lambda line: pytest.fail("it serves"))
        monkeypatch.setattr("herder.cli.serve._found", list)
        assert main(["serve", "--check", "--responses", str(path)]) == StorageError.exit_code
        [line] = capsys.readouterr().err.splitlines()
        assert words in line


def test_the_check_makes_nothing_and_takes_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "responses.sqlite"
    check_store(path)
    assert not path.parent.exists()

    async def make() -> None:
        store = ResponseStore(path)
        await store.open()
        await store.close()

    asyncio.run(make())
    check_store(path)
    assert any(str(path) in line for line in lifecycle.described(Config(responses=str(path))))
    assert "responses are not stored" in lifecycle.described(Config(responses=OFF))


def test_off_is_no_file_of_the_folder(tmp_path: Path) -> None:
    assert parse_config({"responses": "off"}, tmp_path).responses == OFF
    assert parse_config({"responses": "./off"}, tmp_path).responses == str(tmp_path / "off")


def test_a_server_that_stores_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERDER_HOME", str(tmp_path))

    async def test(client: Client, server: Server) -> None:
        answer = (await client.post("/v1/responses", json=ASK)).json()
        assert answer["store"] is False and answer["output"]
        assert (await client.get(f"/v1/responses/{answer['id']}")).status_code == 404
        asked = await client.post("/v1/responses", json={**ASK, "store": True})
        assert asked.status_code == 400 and asked.json()["error"]["param"] == "store"
        goes_on = await client.post("/v1/responses", json={**ASK, "previous_response_id": answer["id"]})
        assert goes_on.status_code == 400 and goes_on.json()["error"]["param"] == "previous_response_id"
        by_item = await client.post("/v1/responses", json={**ASK, "input": [{"type": "item_reference", "id": "msg_1"}]})
        assert by_item.status_code == 400
        for error in (asked, goes_on, by_item):
            assert "stores no responses" in error.json()["error"]["message"]
        streamed = await client.post("/v1/responses", json={**ASK, "stream": True})
        assert '"store":false' in streamed.text and "response.incomplete" in streamed.text

    run(test, config=Config(responses=OFF))
    assert list(tmp_path.iterdir()) == []
