"""The command line: its commands, and one line on stderr for everything that goes wrong."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer

from flopwatch.cli import (
    agents,
    audit,
    backup,
    bringup,
    calculators,
    ceilings,
    check,
    doctor,
    enroll,
    inventory,
    job,
    page,
    probe,
    replay,
    responses,
    simulate,
    tail,
    top,
    trust,
    up,
    views,
)
from flopwatch_proto.errors import FlopwatchError, UsageError

BAD_NEWS: Final = 1
WRONG_USAGE: Final = 2
_INTERRUPTED: Final = 130

app = typer.Typer(
    name="flopwatch",
    help="Where every FLOP of a GPU fleet goes, and who gets paged when too many are lost.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

COMMANDS: Final[tuple[tuple[str, Any], ...]] = (
    ("up", up.up),
    ("simulate", simulate.simulate),
    ("fleet", views.fleet),
    ("cluster", views.cluster),
    ("node", views.node),
    ("team", views.team),
    ("top", top.top),
    ("outages", views.outages),
    ("acknowledge", responses.acknowledge),
    ("close", responses.close),
    ("note", responses.note),
    ("timeline", responses.timeline),
    ("silence", responses.silence_app),
    ("maintenance", responses.maintenance_app),
    ("page", page.app),
    ("agents", agents.agents),
    ("audit", audit.audit),
    ("inventory", inventory.app),
    ("job", job.app),
    ("probe", probe.probe),
    ("ceilings", ceilings.ceilings),
    ("bringup", bringup.app),
    ("trust", trust.app),
    ("tokens", trust.tokens_app),
    ("enroll", enroll.enroll),
    ("deny", trust.deny),
    ("replay", replay.replay),
    ("backup", backup.backup),
    ("restore", backup.restore),
    ("tail", tail.tail),
    ("peaks", calculators.peaks),
    ("mfu", calculators.mfu),
    ("check", check.app),
    ("doctor", doctor.doctor),
)
for _name, _command in COMMANDS:
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


@app.command("agent", context_settings={"ignore_unknown_options": True})
def agent() -> None:
    """The daemon of a node: reads its cards and sends what they did. See `agent --help`."""


@app.command("collector", context_settings={"ignore_unknown_options": True})
def collector() -> None:
    """The daemon that stores, accounts, pages and serves. See `collector --help`."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line that is for none of the daemons; return its exit code."""
    try:
        code: Any = app(list(arguments) or ["--help"], standalone_mode=False)
    except UsageError as exc:
        return _complain(str(exc), WRONG_USAGE)
    except FlopwatchError as exc:
        return _complain(str(exc), BAD_NEWS)
    except typer.TyperException as exc:
        return _complain(_in_one_line(exc), exc.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing is left to say
        return BAD_NEWS
    return int(code or 0)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"flopwatch: {' '.join(text.split())}\n")
    return code


def _in_one_line(exc: typer.TyperException) -> str:
    """The parser's complaint, with the flag or command that was probably meant."""
    text = exc.format_message().rstrip(".")
    context = getattr(exc, "ctx", None)
    if context is None:
        return text
    wrong = getattr(exc, "option_name", None)
    known: list[str] = [name for p in context.command.params for name in p.opts]
    if wrong is None and text.startswith("No such command"):
        wrong, known = text.split("'")[1], sorted(context.command.commands)
    if wrong is not None and text.startswith("No such"):
        close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
        near = f"nearest known: {close[0]}" if close else f"known: {', '.join(known)}"
        return f"{text.split(' (')[0].split('. Did')[0]}; {near}"
    return text
