"""The agent's configuration: defaults, places, and refusals that help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flopwatch_agent import config as module
from flopwatch_agent.config import AgentConfig, default_data_directory, load_config, split_address
from flopwatch_proto.errors import UsageError


@pytest.fixture(autouse=True)
def no_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "agent.toml")


def test_without_a_word_the_agent_speaks_to_this_host() -> None:
    config = load_config(None, {})
    assert config == AgentConfig()
    assert (config.cluster, config.collector) == ("default", "127.0.0.1:9751")
    assert config.node == os.uname().nodename
    assert config.metrics.listen == "127.0.0.1:9752"
    assert config.interval.milliseconds == 10_000
    assert config.sources == {"nvml": True, "kernel_log": True}


def test_file_environment_and_flags_override_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('cluster = "a"\nnode = "n1"\ninterval = "5s"\n[processor]\nenabled = "on"\n')
    environ = {"FLOPWATCH_AGENT__NODE": "n2", "FLOPWATCH_NVML__ENABLED": "false"}
    config = load_config(file, environ, {"--node": ("node", "n3"), "--data": ("data", None)})
    assert (config.cluster, config.node) == ("a", "n3")
    assert config.interval.milliseconds == 5000
    assert config.sources == {"nvml": False, "kernel_log": True, "processor": True}


@pytest.mark.parametrize(
    ("flag", "dotted", "text", "said"),
    [
        ("--collector", "collector", "nowhere", "HOST:PORT"),
        ("--collector", "collector", "host:0", "1 to 65535"),
        ("--collector", "collector", "host:99999", "65535"),
        ("--http", "metrics.listen", "9752", "HOST:PORT"),
        ("--node", "node", "a b", "node"),
        ("--node", "node", "", "node"),
        ("--cluster", "cluster", "../x", "cluster"),
        ("--interval", "interval", "7s", "10s"),
        ("--interval", "interval", "10", "10s"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named_with_what_is_allowed(
    flag: str, dotted: str, text: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, {}, {flag: (dotted, text)})
    assert said in str(caught.value)
    assert flag in str(caught.value) or dotted in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('dtype = "bf61"', "bf16"),
        ("[nvml]\ndeadline = '2m'", "nvml.deadline"),
        ("[spool]\nbytes_max = 5", "1048576"),
        ("[sppol]\nbytes_max = 5", "spool"),
        ("[metrics]\nport = 1", "metrics.listen"),
        ('[processor]\nenabled = "maybe"', "auto, on, off"),
    ],
)
def test_a_file_that_makes_no_sense_says_so(tmp_path: Path, toml: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(toml)
    with pytest.raises(UsageError, match=r"wrong\.toml") as caught:
        load_config(file, {})
    assert said in str(caught.value)


def test_data_goes_where_systemd_says_then_to_the_system_then_to_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/private/flopwatch")
    assert default_data_directory() == Path("/var/lib/private/flopwatch")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_directory() == Path("/var/lib/flopwatch")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_data_directory() == Path("/home/ann/.local/share/flopwatch")


def test_the_collectors_part_of_a_shared_environment_is_left_alone() -> None:
    config = load_config(None, {"FLOPWATCH_RULES__PAGE_SIMULATED": "true"})
    assert config.cluster == "default"


def test_the_jobs_socket_is_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOPWATCH_SOCKET", "/tmp/x.sock")
    assert load_config(None, {}).jobs_socket == Path("/tmp/x.sock")
    named = load_config(None, {"FLOPWATCH_JOBS__SOCKET": "/tmp/y.sock"})
    assert named.jobs_socket == Path("/tmp/y.sock")


def test_addresses_are_taken_apart() -> None:
    assert split_address("127.0.0.1:9752") == ("127.0.0.1", 9752)
    assert split_address("[::1]:0") == ("::1", 0)
