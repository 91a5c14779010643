"""The section ``[kubernetes]``: whether, where and how Kubernetes is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from flopwatch_proto.settings import Duration

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the token and the certificate of its service account."""
INTERVAL_SECONDS_MAX: Final = 240.0
"""A roster holds for 5 minutes; one more must come before."""


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kubernetes, asked once per cluster by the collector; as it stands, from a pod of that cluster.

    Attributes:
        cluster: flopwatch's name of the cluster; None: Kubernetes is not asked.
        url: of the API server.
        token_file: the bearer's token, read again for every roster; None: none is sent.
        ca_file: the certificate that vouches for the server; None: the host's own.
        interval: between two rosters; at most 4 minutes.
        deadline: of one whole roster.
    """

    cluster: str | None = None
    url: str = "https://kubernetes.default.svc"
    token_file: Path | None = ACCOUNT / "token"
    ca_file: Path | None = ACCOUNT / "ca.crt"
    interval: Duration = Duration(30)
    deadline: Duration = Duration(20)

    def __post_init__(self) -> None:
        for name in ("interval", "deadline"):
            if not 1 <= getattr(self, name) <= INTERVAL_SECONDS_MAX:
                raise ValueError(
                    f"{name} must be between 1s and 240s: a roster holds for 5 minutes"
                )
        if not self.url.startswith(("https://", "http://")):
            raise ValueError("url must begin with https:// or http://")
