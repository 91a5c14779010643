"""Tokens and the denylist: who gets a first certificate, by which word, and who is refused all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import delete

from flopwatch_collector.control import operations
from flopwatch_collector.control.schema import DENIED, ENROLLED, TOKEN
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.trust import denylist, tokens
from flopwatch_collector.trust.authority import Authorities, checked_request
from flopwatch_collector.trust.denylist import Denied, Denylist
from flopwatch_collector.trust.enrollment import Signer
from flopwatch_collector.trust.identity import Identity, identity_of
from flopwatch_proto.errors import PermanentError, UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb

HOUR_MS = 3_600_000
LIFE_SECONDS = 7 * 24 * 3_600


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    """A signing request; the name in it is somebody else's."""
    wanted = x509.UniformResourceIdentifier("spiffe://flopwatch/flopwatch/cluster/a/node/other")
    return (
        x509.CertificateSigningRequestBuilder(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([wanted]), critical=False)
        .sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


class Desk:
    """A signer with its store, and a clock that stands."""

    def __init__(self, directory: Path, store: ControlStore) -> None:
        self.now = 1_800_000_000_000
        self.store = store
        self.authorities = Authorities(directory / "trust")
        self.authorities.init(self.now)
        self.signer = Signer(
            control=store,
            authorities=self.authorities,
            domain="flopwatch",
            life_seconds=LIFE_SECONDS,
            now_unix_ms=lambda: self.now,
        )

    def token(
        self, nodes: str = "n*", *, cluster: str = "atlas", uses: int = 1, replaces: bool = False
    ) -> str:
        token = tokens.Token(
            id="",
            cluster=cluster,
            nodes=nodes,
            replaces=replaces,
            uses_left=uses,
            created_unix_ms=self.now,
            expires_unix_ms=self.now + HOUR_MS,
            by="ops",
        )
        return tokens.create(self.store, token, self.authorities.authority().certificate)

    def enroll(
        self, token: str, node: str = "n1", *, cluster: str = "atlas", der: bytes = b""
    ) -> Identity:
        asked = pb.EnrollRequest(
            token=token, cluster=cluster, node=node, signing_request_der=der or request()
        )
        issued = self.signer.enroll(asked, "ipv4:10.0.0.1:5000")
        return identity_of(x509.load_pem_x509_certificate(issued.certificate_pem))

    def refusal(self, identity: Identity) -> str | None:
        asked = Denylist("flopwatch", lambda: self.now)
        asked.replace(denylist.listed(self.store))
        return asked.refusal(identity)

    def deny(self, node: str = "n1") -> None:
        denied = Denied(
            cluster="atlas",
            node=node,
            denied_unix_ms=self.now,
            issued_before_unix_ms=None,
            by="ops",
            why="stolen",
        )
        denylist.deny(self.store, denied)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path_factory.mktemp('trust')}/control.db")
    yield opened
    opened.close()


@pytest.fixture
def desk(tmp_path: Path, control: ControlStore) -> Desk:
    with control.writing() as connection:
        for table in (TOKEN, ENROLLED, DENIED):
            connection.execute(delete(table))
    return Desk(tmp_path, control)


def test_the_name_is_the_tokens_and_never_the_requests(desk: Desk) -> None:
    identity = desk.enroll(desk.token())
    assert (identity.domain, identity.cluster, identity.node) == ("flopwatch", "atlas", "n1")
    assert identity.expires_unix_ms == desk.now + LIFE_SECONDS * 1000


def test_a_token_is_used_up_and_only_its_hash_is_kept(desk: Desk) -> None:
    word = desk.token(uses=2)
    secret = word.split(".")[2]
    assert len(secret) >= 43  # 256 bits
    desk.enroll(word, "n1")
    desk.enroll(word, "n2")
    with pytest.raises(PermanentError, match="used up"):
        desk.enroll(word, "n3")
    (kept,) = tokens.tokens(desk.store)
    assert kept.uses_left == 0
    assert secret not in repr(operations.audit(desk.store))
    database = desk.store.engine.url.database
    assert database is not None
    assert secret.encode() not in Path(database).read_bytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"node": "m1"}, "is for nodes 'n\\*', and this one is 'm1'"),
        ({"cluster": "borg"}, "is of cluster 'atlas', and this node says 'borg'"),
        ({"node": "n/1"}, "1 to 253 letters"),
        ({"der": b"no request"}, "not a signing request"),
        ({"der": b"x" * 9_000}, "9000 bytes"),
    ],
)
def test_what_a_token_does_not_allow_costs_no_use(
    desk: Desk, change: dict[str, str], why: str
) -> None:
    word = desk.token()
    with pytest.raises(PermanentError, match=why):
        desk.enroll(word, **change)  # type: ignore[arg-type]
    assert tokens.tokens(desk.store)[0].uses_left == 1


def test_words_that_are_no_token(desk: Desk) -> None:
    version, id_, _, pin = desk.token().split(".")
    for word in ("", "fw1.a.b", f"{version}.{id_}.{'A' * 43}.{pin}", f"{version}.0.0.{pin}"):
        with pytest.raises(PermanentError, match=r"no token|not known"):
            desk.enroll(word)


def test_a_token_that_expired_or_was_revoked(desk: Desk) -> None:
    revoked, expired = desk.token(), desk.token()
    tokens.revoke(desk.store, revoked.split(".")[1], "ops", desk.now)
    with pytest.raises(PermanentError, match="was revoked"):
        desk.enroll(revoked)
    desk.now += HOUR_MS + 120_000
    with pytest.raises(PermanentError, match="expired 2 minutes ago"):
        desk.enroll(expired)
    with pytest.raises(UsageError, match="no token"):
        tokens.revoke(desk.store, revoked.split(".")[1], "ops", desk.now)


def test_an_answer_that_was_lost_costs_no_use_but_a_replay_with_another_key_does(
    desk: Desk,
) -> None:
    word, der = desk.token(), request()
    first = desk.enroll(word, der=der)
    assert desk.enroll(word, der=der).serial != first.serial
    with pytest.raises(PermanentError, match="used up"):
        desk.enroll(word)


def test_a_host_installed_again_needs_a_word_that_replaces_and_its_old_certificate_is_void(
    desk: Desk,
) -> None:
    old = desk.enroll(desk.token())
    desk.now += 60_000
    with pytest.raises(PermanentError, match="is enrolled already"):
        desk.enroll(desk.token())
    new = desk.enroll(desk.token(replaces=True))
    assert desk.refusal(new) is None
    assert "was enrolled again" in (desk.refusal(old) or "")


def test_a_denied_node_comes_back_by_a_newer_word_alone(desk: Desk) -> None:
    earlier = desk.token(replaces=True, uses=9)
    identity = desk.enroll(earlier)
    desk.now += 1_000
    desk.deny()
    assert "is denied: stolen" in (desk.refusal(identity) or "")
    with pytest.raises(PermanentError, match="is denied"):
        desk.enroll(earlier)
    desk.now += 1_000
    again = desk.enroll(desk.token(replaces=True))
    assert desk.refusal(again) is None
    assert desk.refusal(identity) is not None


def test_who_is_let_in_again_may_use_the_newest_enrolment_only(desk: Desk) -> None:
    old = desk.enroll(desk.token())
    desk.now += 60_000
    new = desk.enroll(desk.token(replaces=True))
    desk.deny()
    denylist.admit(desk.store, "atlas", "n1", "ops", desk.now)
    assert desk.refusal(new) is None
    assert desk.refusal(old) is not None
    with pytest.raises(UsageError, match="is not denied"):
        denylist.admit(desk.store, "atlas", "n1", "ops", desk.now)


def test_a_certificate_that_expired_or_is_of_another_domain_is_refused(desk: Desk) -> None:
    identity = desk.enroll(desk.token())
    desk.now = identity.expires_unix_ms - 1
    assert desk.refusal(identity) is None
    desk.now += 1
    assert "has expired" in (desk.refusal(identity) or "")
    stranger = Identity(domain="other", cluster="atlas", node="n1", expires_unix_ms=desk.now + 1)
    assert "trust domain 'other'" in (desk.refusal(stranger) or "")


def test_everything_stands_in_the_audit_log(desk: Desk) -> None:
    word = desk.token()
    desk.enroll(word)
    desk.deny()
    denylist.admit(desk.store, "atlas", "n1", "ops", desk.now)
    tokens.revoke(desk.store, word.split(".")[1], "ops", desk.now)
    newest = [(e["what"], e["subject"]) for e in operations.audit(desk.store)[:5]]
    id_ = word.split(".")[1]
    assert newest == [
        ("token_revoked", id_),
        ("node_admitted", "atlas/n1"),
        ("node_denied", "atlas/n1"),
        ("node_enrolled", "atlas/n1"),
        ("token_created", id_),
    ]
    assert operations.audit_is_whole(desk.store)


def test_weak_keys_and_forged_requests_are_not_signed() -> None:
    weak = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
    with pytest.raises(PermanentError, match="the key must be"):
        checked_request(request(weak))
    forged = bytearray(request())
    forged[-1] ^= 1
    with pytest.raises(PermanentError, match="signing request"):
        checked_request(bytes(forged))
