"""What `doctor` says of this node's certificate: whose it is, until when, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from flopwatch.cli.doctor_slurm import Fact
from flopwatch_agent.certificates import CertificateError, Files, check, load
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.collectors import addresses
from flopwatch_agent.config import load_config
from flopwatch_agent.trust import LOOPBACK

ADVICE: Final = {
    "absent": "on the collector's host: flopwatch tokens create; here: flopwatch enroll",
    "unreadable": "run this as root or as the agent's user; else enrol anew",
    "other_authority": "the authority was changed, or the file is of another deployment: enrol anew",
    "wrong_purpose": "it takes a certificate for clients",
    "wrong_name": "set cluster and node in agent.toml, or enrol under the name that they say",
    "not_yet": "synchronise this host's clock: chrony or systemd-timesyncd",
    "expired": "enrol anew, with a token made with --replace; was the node or the collector away?",
}
SOON: Final = 0.25
"""Of its life; it should have been renewed long before."""


def certificate(environ: Mapping[str, str]) -> list[Fact]:
    """Return what is to be said of the certificate of this host's agent.

    Raises:
        UsageError: the agent's configuration is wrong.
    """
    config = load_config(None, environ)
    files, now_unix_ms = Files.of(config.identity, config.data), wall_unix_ms(SystemClock())
    targets = addresses(config.collector)
    away = [t for t in targets if t.rpartition(":")[0] not in LOOPBACK]
    try:
        if files.ours and not any(files.signature()) and not away:
            text = f"none: {', '.join(targets)} is spoken to in clear text, on loopback"
            return [("certificate", "info", text, None)]
        found = load(files)
        check(found, files, config.cluster, config.node, now_unix_ms)
    except CertificateError as exc:
        return [("certificate", "failed", str(exc), ADVICE[exc.state])]
    left = (found.expires_unix_ms - now_unix_ms) / (found.expires_unix_ms - found.starts_unix_ms)
    expires = datetime.fromtimestamp(found.expires_unix_ms / 1000, UTC)
    text = f"{found.name.node} of {found.name.cluster} until {expires:%Y-%m-%d %H:%M} UTC"
    if left < SOON:
        advice = "it should have been renewed: the agent's log says why it was not"
        return [("certificate", "failed", f"{text}: {left:.0%} of its life is left", advice)]
    return [("certificate", "ok", text, None)]
