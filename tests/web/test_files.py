"""The page's files: what the server says with them, what the package has of them, and that they are built of web/."""

from __future__ import annotations

import filecmp
import gzip
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from herder.serve.dialects import openai_chat
from herder.serve.fields import refused, supported
from herder.serve.openapi import describe, object_schema
from herder.serve.page import STATIC, page_routes, static_files

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes([openai_chat])), headers={"accept": BROWSER})


def test_the_page_may_run_and_call_nothing_but_its_own(client: TestClient) -> None:
    for path in ("/", "/docs"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-cache" and headers["x-content-type-options"] == "nosniff"


def test_who_is_no_browser_is_told_what_ollamas_clients_ask(client: TestClient) -> None:
    for accept in ("", "*/*", "application/json"):
        answer = client.get("/", headers={"accept": accept})
        assert (answer.status_code, answer.text, answer.headers["vary"]) == (200, "Ollama is running", "accept")
        assert client.head("/", headers={"accept": accept}).headers["content-type"].startswith("text/plain")
    assert "<html" in client.get("/").text and client.head("/").headers["content-type"].startswith("text/html")
    assert client.get("/docs", headers={"accept": "*/*"}).headers["content-type"].startswith("text/html")


def test_hashed_files_last_and_others_are_asked_for_again(client: TestClient) -> None:
    page = client.get("/")
    script = re.search(r'src="(assets/main-[A-Z0-9]{8}\.js)"', page.text)
    assert script is not None
    answer = client.get("/" + script[1], headers={"accept-encoding": "identity"})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    again = client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304 and again.content == b"" and "content-security-policy" in again.headers
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_they_are_sent_zipped_to_those_who_can_read_it(client: TestClient) -> None:
    name, file = next((name, file) for name, file in static_files().items() if name.endswith(".js"))
    zipped = client.get(name, headers={"accept-encoding": "gzip"})
    assert zipped.headers["content-encoding"] == "gzip" and zipped.content == file.body
    assert int(zipped.headers["content-length"]) == len(file.zipped) < len(file.body)
    assert gzip.decompress(file.zipped) == file.body
    plain = client.get(name, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == file.body


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/..%2findex.html", "/assets/%2e%2e/%2e%2e/page.py"])
def test_there_are_no_other_files(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_is_small() -> None:
    assert sum(len(file.body) for file in static_files().values()) < 400_000
    assert sum(len(file.zipped) for file in static_files().values()) < 130_000


def test_the_description_has_every_field() -> None:
    document = describe([openai_chat], "1")
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    (table,) = openai_chat.TABLES
    for field in (*table.fields, *table.extensions):
        at = schema
        for name in field.name.replace("[]", "").split("."):
            while "items" in at and "properties" not in at:
                at = at["items"]
            at = at["properties"][name]
        assert at["x-herder-status"] == field.status.value, field.name


def test_fields_become_a_schema() -> None:
    fields = (supported("a"), supported("a[].b", "a note"), refused("c.d", "no", 0))
    assert object_schema(fields) == {
        "properties": {
            "a": {
                "x-herder-status": "supported",
                "items": {
                    "properties": {"b": {"x-herder-status": "supported", "description": "a note"}},
                    "additionalProperties": False,
                },
            },
            "c": {
                "properties": {"d": {"x-herder-status": "refused", "description": "no", "enum": [None, 0]}},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    }


@pytest.mark.slow
def test_the_wheel_has_them(tmp_path: Path) -> None:
    options = [
        "--no-deps",
        "--no-build-isolation",
        "-Cwheel.cmake=false",
        f"-Cbuild-dir={tmp_path}",
        "-w",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "pip", "wheel", "-q", *options, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name: archive.read(name) for name in archive.namelist() if name.startswith("herder/serve/web/static/")
        }
    assert packed == {f"herder/serve/web/static{name}": file.body for name, file in static_files().items()}


@pytest.mark.slow
def test_the_files_are_built_of_their_sources(tmp_path: Path) -> None:
    """As web/README.md says, from the packages of package-lock.json: `pytest -m slow tests/web/test_files.py`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node is not on this machine: apt-get install nodejs npm (20 or newer)")
    for name in (
        "package.json",
        "package-lock.json",
        "tsconfig.json",
        "build.mjs",
        "index.html",
        "docs.html",
        "favicon.svg",
    ):
        shutil.copy(WEB / name, tmp_path)
    shutil.copytree(WEB / "src", tmp_path / "src")
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run([npm, "ci", *quiet], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0 and re.search(r"ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ENETUNREACH", done.stderr):
        pytest.skip("the npm registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "NO_COLOR": "1"}
    for command in (["npm", "run", "check"], ["node", "build.mjs", str(tmp_path / "static")]):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    built = sorted(path.relative_to(tmp_path / "static") for path in (tmp_path / "static").rglob("*.*"))
    assert built == sorted(path.relative_to(STATIC) for path in STATIC.rglob("*.*")), "run `npm run build` in web/"
    same = filecmp.cmpfiles(tmp_path / "static", STATIC, [str(path) for path in built], shallow=False)[0]
    assert sorted(same) == [str(path) for path in built], "run `npm run build` in web/"
