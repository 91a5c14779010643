"""The command line: which checks, in what time, and where the report goes."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NoReturn

from gpu.checks import CARD, CHECKS, Check
from gpu.child import child_main, run_check
from gpu.load import write_script
from gpu.report import Run, closing_table, write_report
from gpu.result import Card, CheckResult, Context, Fake

ROOT: Final = Path(__file__).resolve().parents[2]
MEASURED: Final = ROOT / "docs" / "measured"
SECONDS_MAX: Final = 470.0
_SECONDS_MIN: Final = 2.0
_VERSIONED: Final = ("torch", "nvidia-ml-py", "nvidia-cuda-nvrtc")


class _UsageError(Exception):
    """What is wrong with the command, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, understood.

    Attributes:
        fake_lines: of the fake driver's script, behind all others.
        seconds_max: after which no check begins and none goes on.
        check_seconds_max: deadline of each check, where its own is later.
    """

    index: int
    out: Path
    checks: tuple[Check, ...]
    quick: bool
    fake: bool
    fake_lines: tuple[str, ...]
    seconds_max: float
    check_seconds_max: float


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest flag there is."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = next((word for word in message.split() if word.startswith("-")), "")
        near = difflib.get_close_matches(wrong.rstrip(":"), flags, n=1, cutoff=0.5)
        hint = f"; the nearest known is {near[0]}" if near and near[0] not in message else ""
        raise _UsageError(f"{message}{hint}")


def main(argv: Sequence[str]) -> int:
    """Run the checks and return the exit status."""
    if len(argv) == 3 and argv[0] == "--child":
        return child_main(argv[1], float(argv[2]))
    try:
        options = parse(argv)
        with _context(options) as context:
            return _run(options, context, shlex.join(["bench/gpu/verify", *argv]))
    except _UsageError as exc:
        sys.stderr.write(f"verify: {exc}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("verify: interrupted; the checks that ended are in the report\n")
        return 130
    except SystemExit as exc:  # --help
        return int(exc.code or 0)


def parse(argv: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        _UsageError: an unknown flag, check or device, or a fake result where measured ones are kept.
    """
    names = ", ".join(check.name for check in CHECKS)
    parser = _Parser(
        prog="bench/gpu/verify",
        description="Check flopwatch against a real driver and card.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N; cpu with --fake")
    parser.add_argument(
        "--out", type=Path, help=f"folder; {MEASURED.relative_to(ROOT)} if left out"
    )
    parser.add_argument("--only", metavar="CHECK,…", help=f"of {names}")
    parser.add_argument("--quick", action="store_true", help="short spans: tests this program only")
    parser.add_argument(
        "--fake", action="store_true", help="with the fakes of tests/fakenvml and tests/fakecuda"
    )
    parser.add_argument("--fake-line", action="append", default=[], help="of the fake's script")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS_MAX, help="no check begins after it"
    )
    parser.add_argument("--check-seconds", type=float, default=SECONDS_MAX, help="of each check")
    given = parser.parse_args(argv)
    device = re.fullmatch(r"(cpu)|cuda:(\d+)", given.device)
    if device is None:
        raise _UsageError(f"--device takes cuda:N, or cpu with --fake, not {given.device!r}")
    if (device[1] is not None) != given.fake:
        raise _UsageError("--device cpu and --fake go together: the processor stands in for a card")
    if given.fake and given.out is None:
        raise _UsageError("--fake needs --out: nothing was measured that could be kept")
    out = (given.out or MEASURED).resolve()
    if given.fake and (out == MEASURED or MEASURED in out.parents):
        raise _UsageError(f"--fake never writes into {MEASURED.relative_to(ROOT)}")
    return Options(
        index=int(device[2] or 0),
        out=out,
        checks=_chosen(given.only),
        quick=given.quick,
        fake=given.fake,
        fake_lines=tuple(given.fake_line),
        seconds_max=given.seconds,
        check_seconds_max=given.check_seconds,
    )


def _chosen(only: str | None) -> tuple[Check, ...]:
    if only is None:
        return CHECKS
    wanted = [name.strip() for name in only.split(",")]
    known = [check.name for check in CHECKS]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise _UsageError(f"--only: unknown check {name!r}; the nearest known is {near}")
    return tuple(check for check in CHECKS if check.name in wanted)


@contextmanager
def _context(options: Options) -> Iterator[Context]:
    """Make the folder, and for a fake its library and script; children find them by environment."""
    options.out.mkdir(parents=True, exist_ok=True)
    context = Context(index=options.index, out=str(options.out), quick=options.quick)
    if not options.fake:
        yield context
        return
    sys.path.append(str(ROOT / "tests"))
    import fakecuda
    from fakenvml import build, env

    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # a check gives up its privileges and still loads the library
        script = Path(scratch, "script.txt")
        fake = Fake(script=str(script), lines=options.fake_lines)
        context = replace(context, fake=fake)
        write_script(context, None)
        os.environ.update(env(build(Path(scratch, "lib")), script))
        os.environ.update(fakecuda.env(fakecuda.build(Path(scratch, "lib")), os.environ))
        yield context


def _run(options: Options, context: Context, command: str) -> int:
    began = time.monotonic()
    found = run_check(CARD, context, CARD.deadline_seconds)
    if found.error is not None:
        sys.stderr.write(f"verify: no card to test: {found.error}\n")
        return 2
    card = Card(**{**found.values, "in_use_by": tuple(found.values["in_use_by"])})
    context = replace(context, card=card)
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    # Of one piece of hardware, or of this moment: not for a file that is to be published.
    public = {k: v for k, v in found.values.items() if k not in ("uuid", "in_use_by")}
    results = [replace(found, values=public)]

    def report() -> tuple[Run, tuple[Path, Path]]:
        run = Run(
            card=card,
            command=command,
            date=date,
            fake=options.fake,
            quick=options.quick,
            versions=_versions(),
            results=tuple(results),
        )
        return run, write_report(run, options.out)

    for number, check in enumerate(options.checks, 1):
        left = options.seconds_max - (time.monotonic() - began)
        result = _one(
            check,
            context,
            min(left, options.check_seconds_max),
            f"[{number}/{len(options.checks)}]",
        )
        results.append(result)
        context = replace(context, earlier={**context.earlier, check.name: result.values})
        report()  # after each: a run that is killed leaves what it has
    run, paths = report()
    sys.stdout.write(closing_table(run) + "\n".join(map(str, paths)) + "\n")
    return 0 if run.agrees else 1


def _one(check: Check, context: Context, left_seconds: float, place: str) -> CheckResult:
    """Run one check inside the time that is left, and say so."""
    tell: Callable[[str], int] = sys.stderr.write
    if left_seconds < _SECONDS_MIN:
        tell(f"{place} {check.name}: not run, no time left\n")
        return CheckResult(name=check.name, status="not_run", seconds=0.0, error="no time was left")
    tell(f"{place} {check.name}: {check.about} …\n")
    sys.stderr.flush()
    result = run_check(check, context, min(check.deadline_seconds, left_seconds))
    tail = f": {result.error}" if result.error is not None else ""
    tell(f"{place} {check.name}: {result.status}, {result.seconds:.1f} s{tail}\n")
    sys.stderr.flush()
    return result


def _versions() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
