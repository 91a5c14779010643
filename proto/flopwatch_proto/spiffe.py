"""The name of a node in its certificate: ``spiffe://DOMAIN/flopwatch/cluster/CLUSTER/node/NODE``.

The one URI among the certificate's subject alternative names; who else a certificate names means nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

DEFAULT_DOMAIN: Final = "flopwatch"
_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"
_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,252}")
_URI: Final = re.compile(
    rf"spiffe://({_DOMAIN.pattern})/flopwatch/cluster/({_SEGMENT})/node/({_SEGMENT})"
)


@dataclass(frozen=True, slots=True)
class NodeName:
    """Whose certificate it is."""

    domain: str
    cluster: str
    node: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return the name that a URI says.

        Raises:
            ValueError: it names no node of flopwatch.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise ValueError(
                f"{uri[:300]!r} is not spiffe://DOMAIN/flopwatch/cluster/CLUSTER/node/NODE"
            )
        return cls(*match.groups())

    @property
    def uri(self) -> str:
        """The name as a URI; `parse` is its inverse."""
        return f"spiffe://{self.domain}/flopwatch/cluster/{self.cluster}/node/{self.node}"


def is_domain(text: str) -> bool:
    """Whether a text can be a trust domain."""
    return _DOMAIN.fullmatch(text) is not None
