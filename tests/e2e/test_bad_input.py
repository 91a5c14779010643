"""Whatever is wrong is said in one line that names it, with exit code 2; what is away is tried again."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from processes import Collector, agent, awaited, collector, done, environment, running

ANY = "127.0.0.1:0"

pytestmark = pytest.mark.usefixtures("in_vain", "stage", "driven")
"""They take their time and are asked for later."""


def complaint(*arguments: str, **env: str) -> str:
    """The one line on stderr of a command that ends with 2 and prints nothing else."""
    ended = done(*arguments, env=environment(**env), seconds_max=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("daemon", "wrong", "near"),
    [
        ("agent", 'clustr = "atlas"', "unknown key clustr; the nearest known key is cluster"),
        ("agent", "[spool]\nbytes = 1", "unknown key spool.bytes; .* spool.bytes_max"),
        ("collector", "[rules.allocation]\nfors = 5", "unknown key rules.allocation.fors; .*for_s"),
        ("collector", "[listen]\nhtpp = 'x:1'", "unknown key listen.htpp; .* listen.http"),
    ],
)
def test_a_wrong_key_is_named_with_its_file_and_the_nearest_known_one(
    daemon: str, wrong: str, near: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(wrong, encoding="utf-8")
    line = complaint(daemon, "--config", str(config))
    assert re.fullmatch(f"flopwatch {daemon}: {re.escape(str(config))}: {near}", line), line


@pytest.mark.parametrize(
    ("daemon", "variable"),
    [("agent", "FLOPWATCH_AGENT__CLUSTR"), ("collector", "FLOPWATCH_LISTEN__HTPP")],
)
def test_a_wrong_variable_is_named(daemon: str, variable: str) -> None:
    line = complaint(daemon, **{variable: "x"})
    assert line.startswith(f"flopwatch {daemon}: {variable}: unknown key ")


@pytest.mark.parametrize(
    ("was", "wrong", "said"),
    [
        (
            "NVIDIA H100 80GB HBM3",
            "H100",
            r"cluster\[0\]\.sku: unknown SKU 'H100'; nearest known: ",
        ),
        ("nodes", "node", r"cluster\[0\]\.node: unknown key; nearest known: nodes"),
        ('"1m"', '"1 minute"', r"scenario\.duration: '1 minute' is no duration; "),
    ],
)
def test_a_typo_in_a_scenario_is_named_with_its_file_and_key(
    was: str, wrong: str, said: str, small: Path, nobody: str, tmp_path: Path
) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(small.read_text(encoding="utf-8").replace(was, wrong), encoding="utf-8")
    line = complaint("simulate", "--collector", nobody, "--scenario", str(file))
    assert re.match(f"flopwatch: scenario {re.escape(str(file))}: {said}", line), line


def test_a_busy_port_is_named_with_its_flag(taken: str, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    busy = f"cannot listen on {taken}: Address already in use"
    line = complaint("collector", *data, "--http", ANY, "--grpc", taken)
    assert line.startswith(f"flopwatch collector: --grpc: {busy}")
    line = complaint("collector", *data, "--http", taken, "--grpc", ANY)
    assert f"--http: {busy}" in line
    line = complaint("agent", *data, "--http", taken, FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"))
    assert re.match(rf"flopwatch agent: metrics.listen = '{taken}': Address already in use", line)


@pytest.mark.parametrize("command", ["agent", "collector", "up"])
def test_a_data_directory_that_cannot_be_written_is_named(command: str, tmp_path: Path) -> None:
    """Root may write everywhere, but nobody can make a directory in a file."""
    (tmp_path / "file").touch()
    data = str(tmp_path / "file/data")
    ports = () if command == "agent" else ("--grpc", ANY)
    line = complaint(command, "--data", data, "--http", ANY, *ports)
    assert line.startswith("flopwatch")
    assert data in line


@pytest.mark.parametrize("command", [("fleet",), ("outages",), ("node", "n1"), ("cluster", "c1")])
def test_a_question_to_a_collector_that_is_not_there_is_answered_in_one_line(
    command: tuple[str, ...], nobody: str
) -> None:
    line = complaint(*command, "--api", f"http://{nobody}")
    assert line.startswith(f"flopwatch: cannot reach http://{nobody}: is the collector running?")


def test_an_agent_without_its_collector_keeps_everything_until_it_comes(tmp_path: Path) -> None:
    with collector(tmp_path / "data") as late:
        late.stop()
        arguments = agent(late.grpc, tmp_path / "agent", cluster="late", node="n1", interval="1s")
        env = environment(
            FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"), FLOPWATCH_NVML__ENABLED="false"
        )
        with running(*arguments, log=tmp_path / "agent.log", env=env) as alone:
            address = awaited(
                lambda: re.search(r"metrics_listening.*address=(\S+)", alone.said()), "its metrics"
            )[1]

            def metrics() -> dict[str, float]:
                text = httpx.get(f"http://{address}/metrics", trust_env=False).text
                lines = [line for line in text.splitlines() if not line.startswith("#")]
                return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

            waiting = awaited(
                lambda: found if (found := metrics())["flopwatch_spool_batches"] > 3 else None,
                "batches in the spool",
            )
            assert waiting["flopwatch_stream_connected"] == 0
            assert alone.running
            late.restart()
            awaited(lambda: late.rows("late"), "rows of the agent")
            awaited(lambda: metrics()["flopwatch_spool_batches"] <= 1, "an empty spool")
        no_hole(late)


def no_hole(late: Collector) -> None:
    """From the first row to the last, every millisecond is in exactly one of them."""
    (row,) = late.sql(
        "SELECT count() AS n, sum(duration_ms) AS total, "
        "max(start_unix_ms + duration_ms) - min(start_unix_ms) AS span FROM interval FINAL "
        "WHERE node = 'n1'"
    )
    assert row["n"] > 5
    assert row["total"] == row["span"]
