"""herder keys: what is printed, what is kept, what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from herder.cli.keys import default_path
from herder.core.errors import UsageError
from herder.serve import keys, keys_store, usage
from herder.serve.gate import Usage
from tests.cli.conftest import Run


def test_a_key_is_made_shown_once_listed_and_revoked(run: Run) -> None:
    made = run("keys", "create", "alice", "--models", "smollm2,tiny", "--rpm", "60", "--quota", "5M/month")
    secret = made.out.strip()
    assert made.code == 0 and secret.startswith("herder_")
    assert made.err == (
        f"herder: this is the only time that the key is shown; `herder serve --keys {default_path()}` asks for it\n"
    )
    connection = keys_store.connect(default_path())
    key = keys.known(connection, secret, time.time())
    connection.close()
    assert key is not None and (key.name, key.rpm, key.tpm) == ("alice", 60, None)
    assert (key.models, key.quota, key.period) == ({"smollm2", "tiny"}, 5_000_000, "month")

    listed = run("keys", "list")
    assert secret[-43:] not in listed.out
    row = listed.out.splitlines()[1].split()
    assert row[:7] == ["alice", key.id, "active", "smollm2,tiny", "60", "5,000,000/month", row[6]]

    gone = run("keys", "revoke", "alice")
    assert gone.code == 0 and f"revoked alice ({key.id})" in gone.err
    (document,) = json.loads(run("keys", "list", "--json").out)
    assert (document["state"], document["models"], document["period"]) == ("revoked", ["smollm2", "tiny"], "month")
    assert run("keys", "revoke", "alice").code == UsageError.exit_code


def test_json_has_the_secret_for_a_script(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    made = json.loads(run("keys", "create", "ci", "--expires", "2d", "--admin", "--keys", str(path), "--json").out)
    assert made["state"] == "admin" and made["keys"] == str(path) and made["quota"] is None
    connection = keys_store.connect(path)
    key = keys.known(connection, made["secret"], time.time())
    connection.close()
    assert key is not None and key.administers
    assert key.expires is not None and abs(key.expires - time.time() - 2 * 86400) < 60
    assert not default_path().exists()


def test_a_key_for_the_metrics_may_use_no_model(run: Run, tmp_path: Path) -> None:
    made = json.loads(run("keys", "create", "prometheus", "--metrics", "--json").out)
    assert made["state"] == "metrics" and made["metrics"] and made["models"] == []
    both = json.loads(run("keys", "create", "both", "--metrics", "--models", "tiny", "--json").out)
    assert both["metrics"] and both["models"] == ["tiny"]
    assert not json.loads(run("keys", "create", "alice", "--json").out)["metrics"]
    rows = [line.split() for line in run("keys", "list").out.splitlines()[1:]]
    assert [(row[0], *row[2:4]) for row in rows] == [
        ("prometheus", "metrics", "none"),
        ("both", "metrics", "tiny"),
        ("alice", "active", "all"),
    ]
    connection = keys_store.connect(default_path())
    key = keys.known(connection, made["secret"], time.time())
    connection.close()
    assert key is not None and key.observes and key.models == frozenset()


def test_usage_is_reported_by_key_model_and_time(run: Run) -> None:
    run("keys", "create", "alice")
    assert "nothing has been used" in run("keys", "usage").err
    connection = keys_store.connect(default_path())
    (key,) = keys_store.every(connection)
    now = time.time()
    for at, model, status in ((now, "m", 200), (now, "m", 500), (now, "n", 200), (now - 40 * 86400, "m", 200)):
        entry = usage.Entry(at, key, Usage("id", "/", model, status, 1000, 10, 5))
        usage.write(connection, [entry])
    connection.close()
    assert [line.split() for line in run("keys", "usage").out.splitlines()] == [
        ["KEY", "MODEL", "REQUESTS", "FAILED", "PROMPT", "CACHED", "COMPLETION"],
        ["alice", "m", "3", "1", "3,000", "30", "15"],
        ["alice", "n", "1", "0", "1,000", "10", "5"],
    ]
    rows = json.loads(run("keys", "usage", "--since", "30d", "--by", "model", "--json").out)
    assert [(row["model"], row["requests"], row["prompt_tokens"]) for row in rows] == [("m", 2, 2000), ("n", 1, 1000)]
    assert len(json.loads(run("keys", "usage", "--by", "day", "--json").out)) == 2
    assert json.loads(run("keys", "usage", "--since", "2999-01-01", "--json").out) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("create a,b", "the name 'a,b' is not letters, digits and -_.@"),
        ("create a --rpm 0", "--rpm is '0': must be a whole number, 1 or more"),
        ("create a --quota 5/year", "--quota is '5/year': must be tokens, like 500000/day, 5M/month or 1G"),
        ("create a --quota M", "--quota is 'M'"),
        ("create a --quota -5", "--quota is '-5'"),
        ("create a --models a,,b", "--models is 'a,,b': must be names of models"),
        ("create a --expires 2020-01-01", "--expires is '2020-01-01': must be a time like 90m"),
        ("create a --expires soon", "--expires is 'soon'"),
        ("usage --since 5", "--since is '5'"),
        ("usage --by week", "--by is 'week': must be one of key,model, key"),
        ("list", "there is no database of API keys at "),
    ],
)
def test_refusals(run: Run, words: str, message: str) -> None:
    result = run("keys", *words.split())
    assert result.code and result.out == "" and result.err.startswith(f"herder: {message}")
    assert result.err.count("\n") == 1
    assert not default_path().exists()


def test_a_second_key_of_that_name(run: Run) -> None:
    assert run("keys", "create", "alice").code == 0
    again = run("keys", "create", "alice")
    assert again.out == "" and again.err.startswith(
        "herder: a key named 'alice' exists: choose another name, or `herder"
    )


def test_completion_knows_the_commands(run: Run) -> None:
    assert [line.split("\t")[0] for line in run("complete", "--", "keys", "").out.splitlines()] == [
        "create", "list", "revoke", "usage",
    ]  # fmt: skip
    assert "--rpm\tRequests a minute" in run("complete", "--", "keys", "create", "x", "--").out
    assert "key,day" in run("complete", "--", "keys", "usage", "--by", "").out
    assert run("complete", "--", "keys", "create").out.startswith("create\t")
