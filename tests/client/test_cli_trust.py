"""The operator's commands, the node's, and what `doctor` says of a certificate."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flopwatch.cli import app, doctor_trust
from flopwatch_agent.certificates import Files
from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from pki import Pair, Pki

Captured = pytest.CaptureFixture[str]


def said(capsys: Captured, *arguments: str, code: int = 0) -> str:
    """What a command line prints; of one that fails, what it complains."""
    assert app.run(arguments) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_an_operator_makes_tokens_and_denies_nodes(tmp_path: Path, capsys: Captured) -> None:
    data = ("--data", str(tmp_path / "collector"))
    assert "flopwatch trust init" in said(
        capsys, "tokens", "create", "--cluster", "a", "--nodes", "*", *data, code=2
    )
    made = said(capsys, "trust", "init", *data)
    pin = made.splitlines()[0].rpartition(", ")[2]
    assert "is there already" in said(capsys, "trust", "init", *data, code=2)
    (authority,) = json.loads(said(capsys, "trust", "show", "--json", *data))
    assert (authority["authority"], authority["signs"], authority["pin"]) == (1, True, pin)
    create = ("tokens", "create", "--cluster", "atlas", "--nodes", "gpu-*", "--uses", "40")
    word = said(capsys, *create, "--for", "2h", *data).strip()
    assert word.split(".")[3] == pin
    (token,) = json.loads(said(capsys, "tokens", "list", "--json", *data))
    assert (token["nodes"], token["uses_left"]) == ("gpu-*", 40)
    assert word.split(".")[2] not in json.dumps(token)
    assert token["expires_unix_ms"] - token["created_unix_ms"] == 2 * 3_600_000
    said(capsys, "tokens", "revoke", token["id"], *data)
    assert "revoked" in said(capsys, "tokens", "list", *data)
    said(capsys, "deny", "gpu-1", "--cluster", "atlas", "--why", "stolen", *data)
    assert "stolen" in said(capsys, "deny", *data)
    said(capsys, "deny", "gpu-1", "--cluster", "atlas", "--end", *data)
    assert "gpu-1" not in said(capsys, "deny", *data)
    store = ControlStore.open(f"sqlite:///{tmp_path}/collector/control.db")
    assert len(operations.audit(store)) == 4
    store.close()


def test_who_was_refused_is_told_with_the_reason_and_the_fix(
    tmp_path: Path, capsys: Captured
) -> None:
    data = ("--data", str(tmp_path))
    assert "nobody was refused" in said(capsys, "trust", "refused", *data)
    store = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    for at, (what, why) in enumerate(
        (
            ("stream_refused", "the certificate of n1 of a has expired"),
            ("stream_refused", "the certificate has 2 URI names: it must have exactly one"),
            ("stream_ended", "n1 of a is denied: stolen"),
            ("stream_refused", "n1 of a was enrolled again: this certificate holds no more"),
            ("enrollment_refused", "[red]odd[/red]"),
            ("token_created", "is no refusal"),
        )
    ):
        operations.record(
            store, at, "a/n1", what, "a/n1", origin="ipv4:10.0.0.1:5", after={"why": why}
        )
    store.close()
    listed = json.loads(said(capsys, "trust", "refused", "--json", *data))
    assert [one["at_unix_ms"] for one in listed] == [4, 3, 2, 1, 0]
    fixes = [one["fix"] for one in listed]
    assert fixes[0] == ""
    for fix, words in zip(
        fixes[1:], ("a clone?", "--end", "one URI name", "--replace"), strict=True
    ):
        assert words in fix
    assert "[red]" in said(capsys, "trust", "refused", *data)


def test_an_authority_is_not_changed_faster_than_nodes_can_follow(
    tmp_path: Path, capsys: Captured
) -> None:
    data = ("--data", str(tmp_path / "collector"))
    for arguments, code in (
        (("init",), 0),
        (("switch",), 2),
        (("drop",), 2),
        (("add",), 0),
        (("add",), 2),
        (("switch",), 2),
        (("switch", "--now"), 0),
        (("drop",), 2),
        (("drop", "--now"), 0),
    ):
        said(capsys, "trust", *arguments, *data, code=code)
    assert "signs" in said(capsys, "trust", "show", *data)


@pytest.mark.parametrize(
    ("arguments", "token", "why"),
    [
        (("collector",), "fw1.a.b.c", "HOST:PORT: 'collector' is none"),
        (("localhost:1",), "", "no token came"),
        (("localhost:1",), "word", "that is no token"),
        (("localhost:1", "--token-file", "/nowhere/token"), "", "/nowhere/token cannot be read"),
        (("localhost:1", "--node", "a b"), "fw1.a.b.c", "node = 'a b'"),
    ],
)
def test_what_a_node_gets_wrong_is_one_line(
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    token: str,
    why: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(token))
    code = 1 if why == "that is no token" else 2
    line = said(capsys, "enroll", *arguments, "--data", str(tmp_path), code=code)
    assert why in line
    assert line.count("\n") == 1


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    keys = {"DATA": str(tmp_path), "CLUSTER": "atlas", "NODE": "n1"} | more
    return {f"FLOPWATCH_AGENT__{key}": text for key, text in keys.items()}


def lay(data: Path, pair: Pair, pki: Pki) -> None:
    files = Files.enrolled(data)
    files.certificate.parent.mkdir(exist_ok=True)
    files.certificate.write_bytes(pair.certificate + pair.key)
    files.authority.write_bytes(pki.authority)


def test_doctor_says_which_certificate_there_is_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    pki, now, day = Pki(), datetime.now(UTC), timedelta(days=1)
    away = environ(tmp_path, COLLECTOR="collector:9751")
    assert [f[1] for f in doctor_trust.certificate(environ(tmp_path))] == ["info"]
    (missing,) = doctor_trust.certificate(away)
    assert missing[1] == "failed"
    assert "flopwatch enroll" in str(missing[3])
    for pair, state, text in (
        (pki.node("atlas", "n1", ends=now + 5 * day), "ok", "n1 of atlas until "),
        (pki.node("atlas", "n1", ends=now - timedelta(minutes=1)), "failed", "expired at "),
        (pki.node("atlas", "n2"), "failed", "is of 'n2' of 'atlas'"),
        (Pki("other").node("atlas", "n1"), "failed", "is not by an authority in"),
        (
            pki.node("atlas", "n1", starts=now - 9 * day, ends=now + day),
            "failed",
            "10% of its life is left",
        ),
    ):
        lay(tmp_path, pair, pki)
        (found,) = doctor_trust.certificate(away)
        assert (found[1], text in found[2]) == (state, True), found
        assert (found[3] is None) == (state == "ok")
