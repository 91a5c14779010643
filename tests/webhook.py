"""A receiver of pages: a real HTTP server on loopback that keeps what it was sent and checks who sent it."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Received:
    """One page. Attributes: key: its idempotency key; genuine: the signature is the secret's."""

    key: str
    genuine: bool
    page: dict[str, Any]


class Receiver:
    """Attributes: url: where it listens; received: in order."""

    def __init__(self, secret: str) -> None:
        self.received: list[Received] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stamp = self.headers["X-Flopwatch-Timestamp"]
                digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256)
                receiver.received.append(
                    Received(
                        key=self.headers["Idempotency-Key"],
                        genuine=self.headers["X-Flopwatch-Signature"] == f"v1={digest.hexdigest()}",
                        page=json.loads(body),
                    )
                )
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/pages"

    def pages(self, cluster: str, rule: str | None = None) -> list[dict[str, Any]]:
        """The pages about a cluster, or about one rule of it; by its key, one that comes again is one."""
        received = {each.key: each.page for each in self.received}
        found = [page for page in received.values() if page["cluster"] == cluster]
        return [page for page in found if rule is None or page["rule"] == rule]


@contextmanager
def receiving(secret: str) -> Iterator[Receiver]:
    """A receiver that listens for the length of a block."""
    receiver = Receiver(secret)
    thread = threading.Thread(target=receiver.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()
