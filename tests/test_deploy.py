"""deploy/: every file is what its reader takes, names what exists, and shows only metrics that the server exports."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from herder.cli.__main__ import command
from herder.cli.command import Command
from herder.serve.config import Config, Images, Limits, Logging, ModelSpec, check_config, parse_config, read_config
from herder.weights.registry import DEFAULT, MODELS, WheelSource
from tests.serve.models import fake_llm, server_of

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/herder.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
UNIT = (DEPLOY / "herder.service").read_text()
DOCKERFILE = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
STATE = "/var/lib/herder"


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.M)


# The configuration ---------------------------------------------------------------------------------------------------
def test_the_configuration_is_one_that_the_server_takes() -> None:
    config = read_config(DEPLOY / "herder.toml")
    check_config(config)
    assert [spec.name for spec in config.models] == ["smollm2"]
    for path in (config.keys, config.responses, config.logging.audit):
        assert path is not None and path.startswith(f"{STATE}/state/")


def test_every_key_of_the_page_on_serving_is_one_of_the_configuration() -> None:
    """docs/serve.md has a whole configuration, and one row for each key."""
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert blocks
    for block in blocks:
        parse_config(tomllib.loads(block))
    section = page[page.index("## Configuration") : page.index("## Keys")]
    described = set(re.findall(r"^\| `([a-z_.A-Z]+)` \|", section, re.M))
    tables = {"limits": Limits, "images": Images, "logging": Logging}
    wanted = {one.name for one in fields(Config)} - {"models", *tables}
    wanted |= {f"{name}.{one.name}" for name, kind in tables.items() for one in fields(kind)}
    wanted |= {f"models.NAME.{one.name}" for one in fields(ModelSpec)} - {"models.NAME.name"}
    assert wanted - described == set(), "not described"
    assert described - wanted == set(), "described, but no key"


# Metrics -------------------------------------------------------------------------------------------------------------
def exported() -> set[str]:
    """The names of all series of a server that has one model."""

    async def page() -> str:
        llm = fake_llm()
        server = server_of(llm)
        async with server.models.use("tiny"):
            text = server.metrics.exposition(server.models)[0].decode()
        await server.close()
        return text

    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", asyncio.run(page()), re.M):
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def test_the_dashboard_shows_what_the_server_exports() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    shown = {name for text in expressions for name in re.findall(r"\b(?:vllm:|herder_)[a-z0-9_]+", text)}
    assert len(shown) > 15
    assert shown - exported() == set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    datasource = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {datasource[0]["uid"]}


def test_the_page_on_serving_lists_every_metric() -> None:
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `((?:vllm:|herder_)[a-z0-9_]+)` \|", page, re.M))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    assert listed == families


# systemd -------------------------------------------------------------------------------------------------------------
def test_the_units_commands_are_ones_that_the_command_line_takes() -> None:
    lines = re.findall(r"^Exec\w+=(.*)$", UNIT, re.M)
    assert len(lines) == 2
    for line in lines:
        program, verb, *words = shlex.split(line)
        assert program == "/opt/herder/bin/herder"
        assert cast(Command, command(verb)).parse(words).config == "/etc/herder/herder.toml"
    assert f"HERDER_HOME={STATE} " in UNIT
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    assert stop is not None and int(stop[1]) > read_config(DEPLOY / "herder.toml").limits.drain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_systemd_takes_the_unit_and_finds_it_tight(tmp_path: Path) -> None:
    unit = tmp_path / "herder.service"
    unit.write_text(UNIT.replace("/opt/herder/bin/herder", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]  # tenths of 10
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Containers ----------------------------------------------------------------------------------------------------------
def test_the_image_is_built_of_what_is_there_and_runs_as_nobody() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"  # nothing but what is named
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() and f"!{source}" in ignored for source in sources)
    assert len(instructions("FROM")) == 2 and instructions("USER") == ["10001"]
    assert isinstance(MODELS[DEFAULT].source, WheelSource), "which `herder pull` fetches with pip"
    assert not [line for line in instructions("RUN") if "uninstall" in line]
    (health,) = instructions("HEALTHCHECK")
    assert "/health/ready" in health
    (words,) = instructions("CMD")
    verb, *rest = json.loads(words)
    parsed = cast(Command, command(verb)).parse(rest)
    assert parsed.offline and parsed.host == "0.0.0.0"


def test_the_composition_mounts_files_that_are_there_and_shows_itself_to_this_machine_only() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for network in service.get("networks", ()):
            assert network in COMPOSE["networks"]
        image = service["image"]
        assert image == "herder" or re.search(r":v?\d+\.\d+\.\d+$", image), "a version, not whatever is newest"
    herder = services["herder"]
    assert herder["read_only"] and herder["cap_drop"] == ["ALL"] and herder["networks"] == ["inside"]
    assert (DEPLOY / herder["build"]["context"]).resolve() == ROOT
    assert (ROOT / herder["build"]["dockerfile"]).exists()


def test_prometheus_asks_the_server_with_its_key() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["herder:8080"]
    (secret,) = COMPOSE["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret]["file"].removeprefix("./") in (DEPLOY / ".gitignore").read_text().splitlines()
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/herder.yml").read_text())["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE["services"]["grafana"]["volumes"]
