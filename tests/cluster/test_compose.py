"""The compose file: not run, but read by everything here that can read a part of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from flopwatch_collector import config
from flopwatch_proto.errors import UsageError

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
SERVICES: Final = {
    *("clickhouse-1", "clickhouse-2", "clickhouse-3", "tables", "postgres", "ingest"),
    *("collector-1", "collector-2", "front-1", "front-2"),
    *("prometheus", "alertmanager-1", "alertmanager-2", "grafana"),
}
SECRET: Final = {"FLOPWATCH_TELEMETRY__DSN": "http://flopwatch:x@clickhouse-1:8123/flopwatch"}


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return read


def test_it_says_that_it_was_not_run() -> None:
    assert "NOT RUN" in (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


def test_everything_is_in_it_and_refers_to_what_is_there(composed: dict[str, Any]) -> None:
    services = composed["services"]
    assert set(services) == SERVICES
    named = {path for service in services.values() for path in service.get("volumes", ())}
    for volume in named:
        source = volume.split(":")[0]
        if not source.startswith("./"):
            assert source in composed["volumes"], volume
        elif "/secrets/" not in source and not source.endswith("/certificates"):
            assert (DEPLOY / source).is_file(), volume
    for service in services.values():
        assert set(service.get("depends_on", ())) <= SERVICES
        assert set(service.get("networks", ())) <= set(composed["networks"])


def test_what_operators_make_is_listed_for_them(composed: dict[str, Any]) -> None:
    listed = (DEPLOY / "compose/README.md").read_text(encoding="utf-8")
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    made = {word.strip('[]"}').split(":")[0] for word in text.split() if "/secrets/" in word}
    for path in made - {"/run/secrets/postgres"}:
        assert f"`secrets/{Path(path).name}`" in listed, path


@pytest.mark.parametrize("name", ["prometheus.yml", "alertmanager.yml", "grafana.yaml"])
def test_the_files_of_others_are_yaml(name: str) -> None:
    assert isinstance(yaml.safe_load((DEPLOY / "compose" / name).read_text(encoding="utf-8")), dict)


def test_the_collectors_take_their_configuration() -> None:
    loaded = config.load(DEPLOY / "compose/collector.toml", SECRET, {})
    assert loaded.telemetry_dsn.startswith("http://")
    assert loaded.control_dsn.startswith("postgresql+psycopg://")


def test_a_password_in_the_control_stores_dsn_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(
        '[control]\ndsn = "postgresql+psycopg://kim:canary@host/name"\n', encoding="utf-8"
    )
    with pytest.raises(UsageError, match=r"control\.dsn carries a password.*passfile") as refused:
        config.load(file, {}, {})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("path", ["haproxy/haproxy.cfg", "compose/front.cfg"])
def test_haproxy_takes_its_configuration(path: str) -> None:
    addresses = {
        "FLOPWATCH_INGEST": "127.0.0.1:1",
        "FLOPWATCH_COLLECTOR_1": "127.0.0.1:2",
        "FLOPWATCH_COLLECTOR_2": "127.0.0.1:3",
    }
    checked = subprocess.run(
        ("haproxy", "-c", "-f", str(DEPLOY / path)),
        env={**os.environ, **addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
