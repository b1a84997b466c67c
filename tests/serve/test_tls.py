"""TLS: a server of certificate files, and what is wrong with files said before anything is served."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from herder.core.errors import StorageError, UsageError
from herder.serve.config import Config
from herder.serve.tls import check_tls
from tests.serve.live import live
from tests.serve.models import fake_llm


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1 and its key, and another key."""
    folder = tmp_path_factory.mktemp("tls")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request += ["-days", "2", "-subj", "/CN=herder", "-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("mine", "other"):
        pair = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(request + pair, check=True, capture_output=True)
        (folder / f"{name}.key").chmod(0o600)
    return folder


def config(files: Path, certificate: str = "mine.pem", key: str = "mine.key") -> Config:
    return Config(tls_certificate=str(files / certificate), tls_key=str(files / key))


def test_a_server_speaks_tls_of_today_only(files: Path) -> None:
    import ssl

    check_tls(config(files))
    trusted = ssl.create_default_context(cafile=str(files / "mine.pem"))
    with live(fake_llm(), config=config(files)) as running:
        url = running.url.replace("http://", "https://")
        answer = httpx.get(f"{url}/health/live", verify=trusted, trust_env=False)
        assert answer.status_code == 200
        old = ssl.create_default_context(cafile=str(files / "mine.pem"))
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health/live", verify=old, trust_env=False)


def test_what_is_wrong_with_the_files_is_one_line(files: Path) -> None:
    good = config(files)
    with pytest.raises(UsageError, match="are not a PEM certificate and its key"):
        check_tls(config(files, key="other.key"))
    with pytest.raises(UsageError, match="are not a PEM certificate and its key"):
        check_tls(config(files, certificate="other.key"))
    with pytest.raises(StorageError, match=r"none\.pem cannot be read: No such file"):
        check_tls(config(files, certificate="none.pem"))
    key = files / "mine.key"
    key.chmod(0o644)
    with pytest.raises(StorageError, match=r"can be reached by others \(mode 0644\): `chmod 640"):
        check_tls(good)
    key.chmod(0o640)
    check_tls(good)
    check_tls(replace(good, tls_certificate=None, tls_key=None))


def test_the_command_line_says_files_and_logs() -> None:
    from herder.cli.serve import COMMANDS, _config

    words = ["tiny", "--tls-certificate", "a", "--tls-key", "b", "--audit", "c", "--log-prompts"]
    made = _config(COMMANDS["serve"].parse(words))
    assert (made.tls_certificate, made.tls_key) == ("a", "b")
    assert made.logging.audit == "c" and made.logging.prompts and made.logging.requests
    assert not _config(COMMANDS["serve"].parse(["tiny"])).logging.prompts
