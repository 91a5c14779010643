"""Settings of certificates, the listener's and those of nodes; light, as the command line reads them too."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from flopwatch_proto import spiffe
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
HOUR_SECONDS: Final = 3_600
LEAF_LIFE_SECONDS_MAX: Final = 30 * 24 * HOUR_SECONDS


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[tls]``. Certificates of one's own making, or brought: read again when they change.

    Attributes:
        names: names and addresses by which agents reach this collector, beside its host name; of our own
            certificates alone.
        domain: the trust domain in the names of nodes: spiffe://DOMAIN/flopwatch/….
        leaf_life: how long a node's certificate holds; it is renewed after two thirds.
        certificate, key, authority: brought PEM files: the listener's chain and its key, and whom to
            believe about nodes; all three, or none.
    """

    names: tuple[str, ...] = ()
    domain: str = spiffe.DEFAULT_DOMAIN
    leaf_life: Duration = Duration(7 * 24 * HOUR_SECONDS)
    certificate: str = ""
    key: str = ""
    authority: str = ""

    def __post_init__(self) -> None:
        if not spiffe.is_domain(self.domain):
            raise ValueError(f"domain = {self.domain!r}: lower-case letters, digits, '.', '_', '-'")
        if not HOUR_SECONDS <= self.leaf_life <= LEAF_LIFE_SECONDS_MAX:
            raise ValueError("leaf_life: between 1h and 30d")
        given = [bool(path) for path in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and authority: name all three files, or none")

    @property
    def brought(self) -> tuple[Path, Path, Path] | None:
        """The files of certificate, key and authorities that were brought; None: our own are used."""
        if not self.certificate:
            return None
        return Path(self.certificate), Path(self.key), Path(self.authority)


def authorities_directory(data: Path) -> Path:
    """Return where our own authorities are kept."""
    return data / "trust"


def check_ingest(address: str, has_certificate: bool) -> None:
    """Refuse a listener in clear text that others than this host could reach.

    Raises:
        UsageError: naming the key and the fix.
    """
    if not has_certificate and address.rpartition(":")[0] not in LOOPBACK:
        raise UsageError(
            f"listen.grpc is {address!r}; without certificates it must be on loopback: make an "
            "authority with `flopwatch trust init`, or bring tls.certificate, tls.key and tls.authority"
        )


def check_enroll(address: str, tls: TlsConfig, has_authority: bool) -> None:
    """Refuse an enrolment that could sign nothing.

    Raises:
        UsageError: naming the key and the fix.
    """
    if address and tls.brought is not None:
        raise UsageError(
            f"listen.enroll is {address!r}, and tls.certificate is brought: who brings certificates "
            "enrols nodes too; leave listen.enroll out"
        )
    if address and not has_authority:
        raise UsageError(
            f"listen.enroll is {address!r}, and there is no authority that could sign: "
            "make one with `flopwatch trust init`"
        )
