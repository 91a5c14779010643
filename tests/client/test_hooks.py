"""Hooks, run by the trainers they are for; Hugging Face's by a stand-in that calls in its `Trainer`'s order.

transformers is too large for the tests of every commit; `tests/client/train_huggingface.py` trains with it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flopwatch import sdk
from flopwatch.hooks import huggingface, lightning
from flopwatch.hooks.made import Hook
from flopwatch.sender import Sender
from flopwatch_proto.errors import UsageError

PROGRAM = Path(__file__).with_name("train_lightning.py")


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """Return the socket of an agent, on which all that was said waits to be read."""
    for name in ("FLOPWATCH_JOB", "SLURM_JOB_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "jobs.sock"
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(path))
    monkeypatch.setattr(sdk, "_SENDER", Sender())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))
        yield listener


def said(agent: socket.socket) -> list[dict[str, Any]]:
    """Return every datagram that arrived, in order."""
    messages = []
    while True:
        try:
            messages.append(json.loads(agent.recv(4096)))
        except BlockingIOError:
            return messages


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_lightning_training_is_counted_with_its_checkpoints_and_validations(
    agent: socket.socket, package: str, tmp_path: Path
) -> None:
    messages: list[dict[str, Any]] = []
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        trainer = subprocess.Popen(
            [sys.executable, str(PROGRAM), package, str(tmp_path)], stdout=out, stderr=err
        )
        while trainer.poll() is None:  # a socket that nobody reads holds ten messages
            messages += said(agent)
            time.sleep(0.05)
        messages += said(agent)
        assert trainer.returncode == 0, (err.seek(0), err.read()[-2000:])
        out.seek(0)
        expected = json.loads(out.read().splitlines()[-1])
    last = messages[-1]
    assert (last["event"], last["job"], last["dtype"]) == ("exit", "toy", "fp32")
    assert (last["steps_total"], last["step"]) == (expected["steps"], expected["steps"])
    assert last["tokens_total"] == expected["tokens"]
    assert last["model_flops_total"] == pytest.approx(expected["flops"])
    assert last["convention"] == "causal_half"
    events = [message["event"] for message in messages if "event" in message]
    assert events[0] == "start"
    assert events.count("eval") == expected["validations"]
    assert events.count("checkpoint") == expected["checkpoints"]


def trained_by_huggingface(callback: Any, *, steps: int, save: int, evaluate: int) -> None:
    """Call back in the order of `transformers.Trainer` (5.x): begin, end, evaluate, save, next."""
    args = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=2, world_size=1)
    state = SimpleNamespace(global_step=0, num_input_tokens_seen=0)
    control = SimpleNamespace(should_save=False, should_evaluate=False)
    callback.on_init_end(args, state, control, model=None)
    callback.on_train_begin(args, state, control, model=None)
    for number in range(1, steps + 1):
        callback.on_step_begin(args, state, control)
        state.global_step = number
        control.should_save, control.should_evaluate = number % save == 0, number % evaluate == 0
        callback.on_step_end(args, state, control)
        if control.should_evaluate:
            callback.on_evaluate(args, state, control, metrics={})
        if control.should_save:
            callback.on_save(args, state, control)
    callback.on_train_end(args, state, control)


def test_a_huggingface_training_is_counted_with_its_checkpoints_and_evaluations(
    agent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("transformers")
    package.TrainerCallback = type("TrainerCallback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    hook = huggingface.callback(flops_per_token=6e9, seq_len=100, job="hf", device="cpu")
    assert isinstance(hook, package.TrainerCallback)
    trained_by_huggingface(hook, steps=6, save=3, evaluate=2)
    messages = said(agent)
    last = messages[-1]
    assert (last["event"], last["steps_total"], last["step"]) == ("exit", 6, 6)
    assert last["tokens_total"] == 6 * 2 * 2 * 100
    assert last["model_flops_total"] == pytest.approx(6 * 400 * 6e9)
    events = [m["event"] for m in messages if "event" in m]
    assert events == ["start", *("eval", "checkpoint", "eval", "eval", "checkpoint"), "exit"]


def test_a_model_that_cannot_be_counted_stops_no_training(agent: socket.socket) -> None:
    hook = Hook(seq_len=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hook.begin(object(), 0)
        hook.enter("eval")
        hook.leave()
        hook.end()
    assert "not counted" in str(caught[0].message)
    assert (hook.meter, said(agent)) == (None, [])


@pytest.mark.parametrize("made", [huggingface._Callback, lightning._Callback])
def test_a_hook_that_knows_no_flops_is_refused_when_it_is_made(made: Any) -> None:
    with pytest.raises(UsageError, match="seq_len=, flops_per_token= or flops_per_step="):
        made()
