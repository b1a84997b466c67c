"""What a key that may not use every model hears of the others: nothing."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from herder.serve.gate import Open, Principal
from herder.serve.server import Server
from tests.serve.test_app import BODY, CHAT, Client, run

LISTS = [
    ("/v1/models", {}),
    ("/v1/models", {"anthropic-version": "2023-06-01"}),
    ("/v1beta/models", {}),
    ("/api/tags", {}),
]


class Elsewhere(Open):
    """A key for a model that is not served here."""

    async def authorize(self, connection: HTTPConnection) -> Principal:
        return Principal(key="k", models=frozenset({"elsewhere"}), administers=False)


@pytest.mark.parametrize(("path", "headers"), LISTS)
def test_lists_and_errors(path: str, headers: dict[str, str]) -> None:
    async def test(client: Client, server: Server) -> None:
        everything = await client.get(path, headers=headers)
        restricted = everything.text
        assert everything.status_code == 200 and "tiny" not in restricted
        if path != "/api/tags":
            known = await client.get(f"{path}/tiny", headers=headers)
            unknown = await client.get(f"{path}/tony", headers=headers)
            assert known.status_code == unknown.status_code == 404
            assert known.text.replace("tiny", "tony") == unknown.text, "one that is not allowed is like one that is not"
        asked = await client.post(CHAT, json={**BODY, "model": "tony"})
        assert asked.status_code == 404 and "tiny" not in asked.text

    run(test, gate=Elsewhere())


def test_aliases_are_entries_of_their_own() -> None:
    async def test(client: Client, server: Server) -> None:
        found = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
        assert found == ["tiny", "tiny-alias"]
        assert (await client.get("/v1/models/tiny-alias")).json()["root"] == "tiny"

    run(test)
