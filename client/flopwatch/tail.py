"""`flopwatch tail`: a trainer's own log lines become what its job says of itself.

    torchrun … ──stdout, stderr──► tail ──the same bytes──► stdout, stderr
                                    └─ known lines ─► counters ─► the sender's thread ─► jobs.sock

The lines' figures are of one card, and count on every card that the job holds on this host. Whatever goes
wrong in reading them, the bytes go through: only the output's own end stops them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from flopwatch.log_lines import COMPOSER, Said, Trainer, parse
from flopwatch.steps import MFU_MAX, Outbox
from flopwatch_kernels.flops import DEFAULT_CONVENTION, ModelShape, train_flops_per_token
from flopwatch_proto.errors import UsageError

CHUNK_BYTES: Final = 65_536
LINE_BYTES_MAX: Final = 65_536
"""A line longer than this is passed on and not read."""

GAP_SECONDS_MAX: Final = 3_600.0
"""Longer without a line: what a rate says of that time is not believed."""

_POLL_SECONDS: Final = 0.5


class LogMeter:
    """Counts what log lines say, per card; the sender reads it like a loop's meter. Time is passed in.

    Args:
        labels: job, team, dtype, workload_class as a meter has them.
        shape: the model's; with it FLOPs are converted to causal_half.
    """

    def __init__(
        self, labels: Mapping[str, str | None], shape: ModelShape | None, sender: Outbox | None
    ) -> None:
        self.model_flops_total = 0.0
        self.tokens_total = 0.0
        self.steps_total = 0
        self.step_seconds_total = 0.0
        self.reported_seconds_total = 0.0
        self.reported_mfu_seconds_total = 0.0
        self.step_number: int | None = None
        self.counts_flops = False
        self.reported_factor: float | None = None
        self.phase: str | None = "startup"
        self.lines = 0
        self._labels = {**labels, "device": "*", "convention": None}
        self._shape = shape
        self._sender = sender
        self._since: dict[str, float] = {}
        self._saving_since: float | None = None

    def labels(self) -> Mapping[str, str | None]:
        """Return what the job is called in the datagrams."""
        return self._labels

    def line(self, text: str, now_seconds: float) -> None:
        """Take a line of the trainer's output."""
        said = parse(text)
        if said is None:
            return
        self.lines += 1
        if said.checkpoint is not None:
            self._checkpoint(now_seconds, begins=said.checkpoint)
        elif said.trainer is not None:
            self._count(said, said.trainer, now_seconds)

    def _count(self, said: Said, trainer: Trainer, now_seconds: float) -> None:
        self._know(trainer)
        if self.phase == "startup":
            self.phase = "steady"
        steps = self._steps(said.step)
        if said.step_seconds is None:
            timed = None
        else:
            timed = said.step_seconds * steps
            self.step_seconds_total += timed
        if said.step is not None and timed is None:
            self.step_seconds_total += self._passed("step", now_seconds)
        tokens, flops = said.tokens_per_second, said.flops_per_second
        if tokens is not None:
            counted = tokens * self._time("tokens", timed, now_seconds)
            self.tokens_total += counted
            # Composer's FLOPs stand in a line of their own; others leave them out where no peak is known.
            if flops is None and self._shape is not None and trainer is not COMPOSER:
                self._flops(counted * train_flops_per_token(self._shape))
        if flops is not None:
            own = flops * self._time("flops", timed, now_seconds)
            self._flops(own / (self.reported_factor or 1.0))
        if said.mfu is not None and 0.0 <= said.mfu <= MFU_MAX:
            seconds = self._time("mfu", timed, now_seconds)
            self.reported_seconds_total += seconds
            self.reported_mfu_seconds_total += said.mfu * seconds

    def _know(self, trainer: Trainer) -> None:
        if self._labels["convention"] is None:
            if self._shape is None:
                self._labels["convention"], self.reported_factor = trainer.convention, 1.0
            else:
                self._labels["convention"] = DEFAULT_CONVENTION
                self.reported_factor = trainer.factor(self._shape)

    def _steps(self, number: int | None) -> int:
        """Return the steps since the last line that gave a number, and count them."""
        if number is None:
            return 1
        before, self.step_number = self.step_number, number
        steps = 1 if before is None else number - before
        if steps < 0:
            self._tell("restart")
            steps = 1
        self.steps_total += steps
        return steps

    def _flops(self, flops: float) -> None:
        self.counts_flops = True
        self.model_flops_total += flops

    def _time(self, name: str, timed: float | None, now_seconds: float) -> float:
        return self._passed(name, now_seconds) if timed is None else timed

    def _passed(self, name: str, now_seconds: float) -> float:
        """Return the time since the last line with this figure; 0 at the first: nobody saw it begin."""
        passed = now_seconds - self._since.get(name, now_seconds)
        self._since[name] = now_seconds
        return passed if passed <= GAP_SECONDS_MAX else 0.0

    def _checkpoint(self, now_seconds: float, *, begins: bool) -> None:
        if begins:
            self._saving_since, self.phase = now_seconds, "checkpoint"
            self._tell(None)
        elif self._saving_since is not None:
            took = now_seconds - self._saving_since
            self._saving_since, self.phase = None, "steady"
            self._tell("checkpoint", took * 1e3)

    def _tell(self, event: str | None, event_ms: float | None = None) -> None:
        if self._sender is not None:
            self._sender.tell(event, event_ms)


class Lines:
    """Cuts bytes into lines and gives them to a meter, whatever they hold."""

    def __init__(self, meter: LogMeter) -> None:
        self._meter = meter
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Take bytes as they come. A carriage return ends a line too, as progress bars write them."""
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if not self._skipping:
                self._meter.line(line.decode(errors="replace"), monotonic())
            self._skipping = False
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest, self._skipping = b"", True


def follow(file: Path, meter: LogMeter, stop: threading.Event) -> None:
    """Read what is appended to a file from now on, also after it was replaced, until told to stop.

    Raises:
        UsageError: the file cannot be read.
    """
    lines = Lines(meter)
    try:
        stream = file.open("rb")
        stream.seek(0, os.SEEK_END)
        while not stop.wait(_POLL_SECONDS):
            lines.feed(stream.read())
            there = file.stat() if file.exists() else None
            here = os.fstat(stream.fileno())
            if there is not None and (there.st_ino != here.st_ino or there.st_size < stream.tell()):
                stream.close()
                stream = file.open("rb")
        stream.close()
    except OSError as exc:
        raise UsageError(f"--file {file}: {exc.strerror}") from exc


def pass_through(source: int, target: int, meter: LogMeter) -> None:
    """Copy a descriptor's bytes to another until the end, and read the lines among them."""
    lines = Lines(meter)
    while data := os.read(source, CHUNK_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        lines.feed(data)


def wrap(command: Sequence[str], environment: Mapping[str, str], meter: LogMeter) -> int:
    """Run a command, its output passed through unchanged; return its exit code.

    Raises:
        UsageError: the command cannot be started.
    """
    try:
        child = subprocess.Popen(
            list(command), env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as exc:
        raise UsageError(f"tail: {command[0]}: {exc.strerror}") from exc
    assert child.stdout is not None
    assert child.stderr is not None
    pumps = [
        threading.Thread(target=_pump, args=(stream.fileno(), target, meter), daemon=True)
        for stream, target in ((child.stdout, 1), (child.stderr, 2))
    ]
    for pump in pumps:
        pump.start()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, lambda got, _: child.send_signal(got))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    code = child.wait()
    for pump in pumps:
        pump.join(timeout=5.0)  # a grandchild may hold the pipe open for ever
    return 128 - code if code < 0 else code


def _pump(source: int, target: int, meter: LogMeter) -> None:
    try:
        pass_through(source, target, meter)
    except OSError:
        while os.read(source, CHUNK_BYTES):  # our reader is gone: the trainer is not to die of it
            pass
