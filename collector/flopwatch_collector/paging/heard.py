"""What PagerDuty tells us of its incidents: webhooks V3, signed. Pure.

https://developer.pagerduty.com/docs/webhooks-overview and .../docs/verifying-webhook-signatures
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Final

from flopwatch_collector.control.response import Kind
from flopwatch_proto.errors import UsageError

SIGNATURE_HEADER: Final = "X-PagerDuty-Signature"
BODY_BYTES_MAX: Final = 512 * 1024
KINDS: Final = {
    "incident.acknowledged": Kind.ACKNOWLEDGE,
    "incident.unacknowledged": Kind.TAKE_BACK,
    "incident.resolved": Kind.CLOSE,
    "incident.reopened": Kind.REOPEN,
    "incident.annotated": Kind.NOTE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Something that happened to an incident. Attributes: by: a person; dedup_key: of our page."""

    kind: Kind
    dedup_key: str
    by: str
    text: str = ""


def is_signed(secret: bytes, body: bytes, header: str) -> bool:
    """Whether one of the signatures of a request is of its body: several while a secret is replaced."""
    wanted = f"v1={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
    given = [part.strip() for part in header.split(",")]
    return any(hmac.compare_digest(wanted, one) for one in given if one.isascii())


def heard(body: bytes) -> Heard | None:
    """Return what a webhook says; None: nothing that concerns us.

    What we did ourselves comes back with a service or an integration as its agent, and is not a person's
    word: a resolve of ours is no closure.

    Raises:
        UsageError: the body is no webhook.
    """
    try:
        event = json.loads(body)["event"]
        kind = KINDS.get(event["event_type"])
        data, agent = event["data"], event.get("agent") or {}
        person = agent.get("type", "").startswith("user")
        if kind is None or not person:
            return None
        note = kind is Kind.NOTE
        key = (data.get("incident") or data if note else data).get("incident_key")
        if not key:
            return None
        return Heard(
            kind=kind,
            dedup_key=str(key),
            by=f"{agent.get('summary') or 'somebody'} in PagerDuty",
            text=str(data.get("content", "")) if note else "",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UsageError(f"this is no webhook of PagerDuty: {type(exc).__name__}") from exc
