"""Tokens: words by which a provisioner lets nodes have their first certificate.

    fw1.ID.SECRET.PIN      ID names the token in lists; SECRET has 256 random bits, of which the store
                           keeps a hash; PIN is a hash of the authority, so that a node knows whom to tell

A token lets some nodes of one cluster enrol, some times, for a while, and does nothing else. A node that
is enrolled already needs one that replaces. The same node may ask twice with the same key: an answer that
was lost costs no use.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from cryptography import x509
from sqlalchemy import Connection, delete, insert, select, update

from flopwatch_collector.control import operations
from flopwatch_collector.control.schema import DENIED, ENROLLED, TOKEN
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.tls import LEAF_LIFE_SECONDS_MAX
from flopwatch_collector.trust.authority import pin
from flopwatch_collector.trust.identity import Identity
from flopwatch_proto.errors import PermanentError, UsageError

VERSION: Final = "fw1"
USES_MAX: Final = 1_000_000
TOKENS_KEPT_MS: Final = 35 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token. Attributes: nodes: shell pattern; replaces: enrolled nodes may come again."""

    id: str
    cluster: str
    nodes: str
    replaces: bool
    uses_left: int
    created_unix_ms: int
    expires_unix_ms: int
    by: str
    revoked_unix_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who asks for a certificate, and by which word. Attributes: key_hash: of the public key."""

    token: str
    cluster: str
    node: str
    key_hash: str


def create(store: ControlStore, token: Token, authority: x509.Certificate) -> str:
    """Store a new token, whose id is chosen here; return its word, which is nowhere kept.

    Raises:
        UsageError: it could never be used, or for too long.
    """
    if not 1 <= token.uses_left <= USES_MAX:
        raise UsageError(f"--uses: between 1 and {USES_MAX}")
    if token.expires_unix_ms <= token.created_unix_ms:
        raise UsageError("--for: longer than nothing")
    id_, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    columns = asdict(token) | {"id": id_, "secret_hash": _hash(secret)}
    with store.writing() as connection:
        old = token.created_unix_ms - TOKENS_KEPT_MS
        connection.execute(delete(TOKEN).where(TOKEN.c.expires_unix_ms < old))
        connection.execute(insert(TOKEN).values(**columns))
    operations.record(
        store,
        token.created_unix_ms,
        token.by,
        "token_created",
        id_,
        after={k: columns[k] for k in ("cluster", "nodes", "replaces", "uses_left")},
    )
    return ".".join((VERSION, id_, secret, pin(authority)))


def tokens(store: ControlStore) -> list[Token]:
    """Every token that is kept, newest first."""
    query = select(TOKEN).order_by(TOKEN.c.created_unix_ms.desc(), TOKEN.c.id)
    with store.reading() as connection:
        return [_token(row._asdict()) for row in connection.execute(query)]


def revoke(store: ControlStore, id_: str, by: str, now_unix_ms: int) -> None:
    """Let a token work no more. Raises: UsageError: there is none."""
    with store.writing() as connection:
        done = connection.execute(
            update(TOKEN)
            .where(TOKEN.c.id == id_, TOKEN.c.revoked_unix_ms.is_(None))
            .values(revoked_unix_ms=now_unix_ms)
        )
    if not done.rowcount:
        raise UsageError(f"no token {id_!r} that works: `flopwatch tokens list` shows them")
    operations.record(store, now_unix_ms, by, "token_revoked", id_)


def enroll(
    store: ControlStore, request: Request, sign: Callable[[], Identity], now_unix_ms: int
) -> None:
    """Use a token once, for a node and the certificate that is signed for it; all of it, or nothing.

    Args:
        sign: makes the certificate, and says what it holds.

    Raises:
        PermanentError: the token does not allow it; the text says why.
        RetryableError: the store does not answer; nothing was used.
    """
    with store.writing() as connection:
        token, spent = _allowed(connection, request, now_unix_ms)
        there = _enrolled(connection, request.cluster, request.node)
        repeated = there is not None and (there["token"], there["key_hash"]) == (
            token.id,
            request.key_hash,
        )
        if not repeated:
            if spent:
                raise PermanentError(spent)
            if there is not None and not token.replaces:
                raise PermanentError(
                    f"{request.node} of {request.cluster} is enrolled already: a host that was "
                    "installed again needs a token made with --replace"
                )
            connection.execute(
                update(TOKEN).where(TOKEN.c.id == token.id).values(uses_left=token.uses_left - 1)
            )
        denied = _denied(connection, request.cluster, request.node)
        _check_denied(denied, request, token)
        issued = sign()
        _keep(connection, request, token, issued, now_unix_ms)
        if (there is not None and not repeated) or denied is not None:
            _supersede(connection, token, issued, now_unix_ms)


def _check_denied(denied: dict[str, Any] | None, request: Request, token: Token) -> None:
    """A node that is denied comes back by a newer word that says so, and by nothing else."""
    if denied is None or denied["issued_before_unix_ms"] is not None:
        return
    if not token.replaces or token.created_unix_ms <= denied["denied_unix_ms"]:
        raise PermanentError(
            f"{request.node} of {request.cluster} is denied ({denied['why']}): it takes a token made "
            "since, with --replace"
        )


def renewed(store: ControlStore, identity: Identity, key_hash: str) -> None:
    """Note a node's newer certificate, where it was enrolled here."""
    with store.writing() as connection:
        connection.execute(
            update(ENROLLED)
            .where(ENROLLED.c.cluster == identity.cluster, ENROLLED.c.node == identity.node)
            .values(
                serial=identity.serial,
                expires_unix_ms=identity.expires_unix_ms,
                key_hash=key_hash,
            )
        )


def _allowed(connection: Connection, request: Request, now_unix_ms: int) -> tuple[Token, str]:
    """Return the token, and why it may not be used once more; empty: it may.

    Raises:
        PermanentError: it is no token, or not for this node, or not any more.
    """
    parts = request.token.split(".")
    if len(parts) != 4 or parts[0] != VERSION:
        raise PermanentError("that is no token: it begins with fw1. and has four parts")
    found = connection.execute(
        select(TOKEN).where(TOKEN.c.id == parts[1]).with_for_update()
    ).first()
    columns = found._asdict() if found is not None else {}
    if not hmac.compare_digest(columns.get("secret_hash", ""), _hash(parts[2])):
        raise PermanentError("the token is not known here")
    token = _token(columns)
    if token.revoked_unix_ms is not None:
        raise PermanentError(f"token {token.id} was revoked")
    if token.expires_unix_ms <= now_unix_ms:
        minutes = (now_unix_ms - token.expires_unix_ms) / 60_000
        raise PermanentError(f"token {token.id} expired {minutes:.0f} minutes ago: make another")
    if token.cluster != request.cluster:
        raise PermanentError(
            f"token {token.id} is of cluster {token.cluster!r}, and this node says "
            f"{request.cluster!r}: set cluster in its agent.toml"
        )
    if not fnmatchcase(request.node, token.nodes):
        raise PermanentError(
            f"token {token.id} is for nodes {token.nodes!r}, and this one is {request.node!r}"
        )
    return token, "" if token.uses_left > 0 else f"token {token.id} is used up: make another"


def _keep(
    connection: Connection, request: Request, token: Token, issued: Identity, now_unix_ms: int
) -> None:
    key = {"cluster": request.cluster, "node": request.node}
    connection.execute(delete(ENROLLED).filter_by(**key))
    connection.execute(
        insert(ENROLLED).values(
            **key,
            token=token.id,
            key_hash=request.key_hash,
            serial=issued.serial,
            enrolled_unix_ms=now_unix_ms,
            expires_unix_ms=issued.expires_unix_ms,
        )
    )


def _supersede(connection: Connection, token: Token, issued: Identity, now_unix_ms: int) -> None:
    """Refuse the certificates that the node had before; when they have all expired, forget it."""
    oldest = now_unix_ms - LEAF_LIFE_SECONDS_MAX * 1000
    key = {"cluster": issued.cluster, "node": issued.node}
    connection.execute(delete(DENIED).where(DENIED.c.issued_before_unix_ms < oldest))
    connection.execute(delete(DENIED).filter_by(**key))
    connection.execute(
        insert(DENIED).values(
            **key,
            denied_unix_ms=now_unix_ms,
            issued_before_unix_ms=issued.issued_unix_ms,
            by=f"token {token.id}",
            why="enrolled again",
        )
    )


def _enrolled(connection: Connection, cluster: str, node: str) -> dict[str, Any] | None:
    found = connection.execute(select(ENROLLED).filter_by(cluster=cluster, node=node)).first()
    return None if found is None else found._asdict()


def _denied(connection: Connection, cluster: str, node: str) -> dict[str, Any] | None:
    found = connection.execute(select(DENIED).filter_by(cluster=cluster, node=node)).first()
    return None if found is None else found._asdict()


def _token(columns: dict[str, Any]) -> Token:
    return Token(**{k: v for k, v in columns.items() if k != "secret_hash"})


def _hash(secret: str) -> str:
    # The secret is random, all of it: a hash that is slow on purpose would guard nothing.
    return hashlib.sha256(secret.encode()).hexdigest()
