"""`flopwatch agent release`: the command, and a daemon that lets go of its cards."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fakenvml import Script, build, device, env
from flopwatch_agent.__main__ import main
from flopwatch_agent.release import RELEASED, STUCK, Window
from processes import FLOPWATCH, Process, awaited, done, environment


@pytest.fixture
def window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Window:
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "jobs.sock"))
    return Window(tmp_path / "release")


def answering(window: Window, word: str) -> Callable[[], None]:
    """An agent that gives this word to the first request; returns what waits for its end."""

    def answer() -> None:
        give_up = time.monotonic() + 30
        while window.open_until() is None and time.monotonic() < give_up:
            time.sleep(0.01)
        window.answer(word)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread.join


def test_the_command_says_until_when(window: Window, capsys: pytest.CaptureFixture[str]) -> None:
    ended = answering(window, RELEASED)
    assert main(["release", "--for", "90s"]) == 0
    ended()
    assert capsys.readouterr().out.startswith("released until ")
    until = window.open_until()
    assert until is not None
    assert until > time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_child_that_stays_in_the_driver_is_bad_news(
    window: Window, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = answering(window, STUCK)
    assert main(["release"]) == 1
    ended()
    assert "hangs in the driver" in capsys.readouterr().err


def test_without_an_agent_nothing_is_left_behind(
    window: Window, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flopwatch_agent.__main__._ANSWER_SECONDS", 0.1)
    assert main(["release", "--for", "10m"]) == 1
    assert str(window.path) in capsys.readouterr().err
    assert not window.path.exists()
    assert main(["release", "--end"]) == 1
    assert "no agent" in capsys.readouterr().err


def agents_window(tmp_path: Path) -> Window:
    """The window as an agent has it that starts now."""
    return Window(tmp_path / "run" / "release", kept=tmp_path / "data")


def test_a_window_outlives_a_restart_that_empties_its_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    agents_window(tmp_path)  # of an agent that ran before: nothing to keep
    line = Window(run / "release").ask(600)
    before = agents_window(tmp_path)
    before.answer(RELEASED)
    until = before.open_until()
    shutil.rmtree(run)  # systemd, when the agent stops
    run.mkdir()
    after = agents_window(tmp_path)
    assert until is not None
    assert after.open_until() == until
    after.answer(RELEASED)
    assert after.answer_to(line) == RELEASED
    after.close()
    shutil.rmtree(run)
    run.mkdir()
    assert agents_window(tmp_path).open_until() is None  # it was over


def test_a_window_that_was_ended_without_an_agent_does_not_come_back(tmp_path: Path) -> None:
    asked = Window(tmp_path / "run" / "release")
    asked.ask(600)
    agents_window(tmp_path).answer(RELEASED)
    asked.end()
    assert agents_window(tmp_path).open_until() is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--for", "soon"], "--for"),
        (["--for", "3d"], "24h"),
        (["--fro", "10m"], "--for"),
        (["--config", "/nowhere/agent.toml"], "/nowhere/agent.toml"),
    ],
)
def test_wrong_usage_of_release_is_one_line_and_exit_code_2(
    window: Window, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["release", *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def children(pid: int) -> list[str]:
    return [" ".join(child.cmdline()) for child in psutil.Process(pid).children()]


def test_a_running_agent_lets_go_and_takes_its_cards_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lib = build(tmp_path_factory.getbasetemp() / "fakenvml")
    script = Script(tmp_path / "script.txt").write(device(0))
    fake = env(lib, script)
    of_the_fake = {name: fake[name] for name in ("LD_LIBRARY_PATH", "FAKENVML_SCRIPT")}
    around = environment(**of_the_fake, FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"))
    agent = Process(
        (
            *(*FLOPWATCH, "agent", "--data", str(tmp_path / "data"), "--http", ""),
            *("--collector", "127.0.0.1:9", "--cluster", "atlas", "--node", "n1"),
        ),
        tmp_path / "agent.log",
        around,
    )
    try:
        awaited(lambda: "event=agent_started" in agent.said(), "the agent starts")
        assert any("flopwatch_agent.driver" in child for child in children(agent.pid))
        released = done("agent", "release", "--for", "1h", env=around)
        assert released.returncode == 0, released.stderr
        assert "released until" in released.stdout
        assert not any("flopwatch_agent.driver" in child for child in children(agent.pid))
        taken = done("agent", "release", "--end", env=around)
        assert taken.returncode == 0, taken.stderr
        awaited(
            lambda: any("flopwatch_agent.driver" in child for child in children(agent.pid)),
            "a driver child",
        )
    finally:
        assert agent.end() == 0
