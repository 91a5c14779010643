"""A node's certificate, judged by itself: what is wrong with it is told before a collector is asked."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flopwatch_agent.certificates import CertificateError, Files, check, load
from pki import SERVER, Pair, Pki

NOW = datetime.now(UTC).replace(microsecond=0)
NOW_MS = round(NOW.timestamp() * 1000)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def written(directory: Path, pair: Pair, pki: Pki) -> Files:
    certificate, key = pair.write(directory)
    authority = directory / "authority.pem"
    authority.write_bytes(pki.authority)
    return Files(certificate=certificate, key=key, authority=authority, ours=False)


def test_a_good_certificate_says_whose_it_is_and_until_when(tmp_path: Path, pki: Pki) -> None:
    ends = NOW + timedelta(days=2)
    files = written(tmp_path, pki.node("atlas", "n1", ends=ends), pki)
    certificate = load(files)
    assert (certificate.name.cluster, certificate.name.node) == ("atlas", "n1")
    assert certificate.expires_unix_ms == round(ends.timestamp() * 1000)
    check(certificate, files, "atlas", "n1", NOW_MS)


@pytest.mark.parametrize(
    ("pair", "state", "text"),
    [
        (lambda pki: Pki("other").node("atlas", "n1"), "other_authority", "not by an authority in"),
        (lambda pki: pki.node("atlas", "n1", usage=SERVER), "wrong_purpose", "not for clients"),
        (lambda pki: pki.node("a", "n", uris=["spiffe://x/y"]), "wrong_name", "is not spiffe://"),
        (
            lambda pki: pki.node("a", "n", uris=["spiffe://x/y", "spiffe://x/z"]),
            "wrong_name",
            "has 2 URI names",
        ),
        (
            lambda pki: Pair(pki.node("a", "n").certificate, pki.node("a", "n").key),
            "unreadable",
            "KEY_VALUES_MISMATCH",
        ),
        (lambda pki: Pair(b"nothing", b"nothing"), "unreadable", "cannot be used"),
    ],
    ids=["authority", "purpose", "name", "names", "key", "text"],
)
def test_what_cannot_be_shown_is_told_apart(
    tmp_path: Path, pki: Pki, pair: object, state: str, text: str
) -> None:
    assert callable(pair)
    with pytest.raises(CertificateError, match=text) as told:
        load(written(tmp_path, pair(pki), pki))
    assert told.value.state == state


def test_a_key_with_a_password_is_told_and_asks_nobody(tmp_path: Path, pki: Pki) -> None:
    files = written(tmp_path, pki.node("a", "n"), pki)
    secret = subprocess.run(
        ["openssl", "ec", "-in", files.key, "-aes128", "-passout", "pass:secret"],
        capture_output=True,
        check=True,
    ).stdout
    files.key.write_bytes(secret)
    with pytest.raises(CertificateError, match="cannot be used"):
        load(files)


def test_dates_and_names_are_held_against_this_node(tmp_path: Path, pki: Pki) -> None:
    pair = pki.node("atlas", "n1", starts=NOW, ends=NOW + timedelta(hours=1))
    files = written(tmp_path, pair, pki)
    certificate = load(files)
    for node, now_ms, state in (
        ("n2", NOW_MS, "wrong_name"),
        ("n1", NOW_MS - 1, "not_yet"),
        ("n1", NOW_MS + 3_600_000, "expired"),
    ):
        with pytest.raises(CertificateError) as told:
            check(certificate, files, "atlas", node, now_ms)
        assert told.value.state == state
    assert str(told.value).endswith("UTC")


def test_a_node_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="flopwatch enroll") as told:
        load(Files.enrolled(tmp_path))
    assert told.value.state == "absent"


def test_the_daemon_does_not_load_what_reads_certificates() -> None:
    program = "import sys, flopwatch_agent.app; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
