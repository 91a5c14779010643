"""``python -m campaign.afar NAME TARGET HOME BASE PKI [KEEPALIVE]``: a node of `campaign.cut`, on mTLS.

SIGUSR1: say ``fresh`` and after how many seconds something new was acknowledged. SIGTERM: append no more,
deliver everything, take leave, say ``produced`` and how many rows.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from pathlib import Path

from campaign.keepalive import shorten
from campaign.nodes import Node
from flopwatch_agent.channel import Channel


async def run(name: str, target: str, home: str, base: str, pki: str, keepalive: str = "") -> None:
    """Send until SIGTERM."""
    if keepalive:
        shorten(float(keepalive))
    loop, ending, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    trust = ssl.create_default_context(cafile=str(Path(pki, "authority.pem")))
    trust.set_alpn_protocols(["h2"])
    trust.load_cert_chain(Path(pki, name, "certificate.pem"), Path(pki, name, "key.pem"))
    node = Node(name, target, Path(home), int(base), channel=lambda to: Channel(to, trust))
    _say(f"sending to {target}")
    while not ending.is_set():
        if asked.is_set():
            asked.clear()
            _say(f"fresh {await node.fresh_seconds():.3f}")
        await asyncio.sleep(0.05)
    await node.finish()
    _say(f"produced {node.promised}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
