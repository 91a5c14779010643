"""ClickHouse's HTTP protocol in front of the embedded engine: one store for several processes.

``python tests/clickhouse_http.py DIRECTORY`` listens on a free port of the loopback and says which. Each
set of settings that clients send has handles of its own on the engine: there they stay set.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame  # type: ignore[import-untyped]
import zstandard

from processes import Process, environment

# What the transport itself consumes; the engine would not know them.
TRANSPORT: Final = re.compile(
    r"query|database|session_.*|query_id|quota_key|compress|decompress|wait_end_of_query|role"
    r"|client_protocol_version|.*http_headers.*|buffer_size|enable_http_compression|default_format"
    r"|param_.*"
)
UNPACK: Final = {
    None: bytes,
    "lz4": lz4.frame.decompress,
    "zstd": lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed),
}
# The engine's JIT breaks where memory may not be made executable.
NO_JIT: Final = dict.fromkeys(
    ("compile_expressions", "compile_aggregate_expressions", "compile_sort_description"), "0"
)


class Engine:
    """Handles on the engine that nobody uses now, by what is set in them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._free: dict[tuple[tuple[str, str], ...], list[Any]] = {}
        # One handle stays: the engine ends with its last one, and starting it takes a while.
        self._kept = chdb.connect(path)  # type: ignore[no-untyped-call]

    @contextmanager
    def handle(self, asked: dict[str, str]) -> Iterator[Any]:
        """Lend a handle in which the settings are set."""
        settings = {key: text for key, text in asked.items() if TRANSPORT.fullmatch(key) is None}
        name = tuple(sorted(settings.items()))
        free = self._free.setdefault(name, [])
        try:
            handle = free.pop()
        except IndexError:
            handle = chdb.connect(self._path)  # type: ignore[no-untyped-call]
            for key, value in sorted((NO_JIT | settings).items(), key=lambda s: s[0] == "readonly"):
                handle.query(f"SET {key} = '{value}'", "Null")
        yield handle
        free.append(handle)


class Connection(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_POST(self) -> None:
        """Run what is asked: the query is in the address or in the body, what to insert in the body."""
        asked = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = UNPACK[self.headers.get("Content-Encoding")](self._body())
        query, data = asked.get("query", "").encode(), body
        if not query:
            # What to insert may follow its query, after the line that names the format.
            into = re.match(rb"\s*INSERT\s[^\n]*FORMAT \w+(?=\n)", body)
            query = into[0] if into else body
            data = body[into.end() + 1 :] if into else b""
        try:
            content, form = self._run(asked, query.decode(), data)
        except Exception as exc:
            text = str(exc)
            code = re.search(r"Code: (\d+)", text)
            failed = {"X-ClickHouse-Exception-Code": code[1] if code else "1002"}
            self._answer(500, text.encode(), failed)
        else:
            self._answer(200, content, {"X-ClickHouse-Format": form, "X-ClickHouse-Summary": "{}"})

    do_GET = do_POST

    def _run(self, asked: dict[str, str], query: str, data: bytes) -> tuple[bytes, str]:
        form = re.search(r"\bFORMAT\s+(\w+)\s*;?\s*$", query, re.IGNORECASE)
        name = form[1] if form else asked.get("default_format", "TabSeparated")
        with self.engine.handle(asked) as handle:
            if data:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(data)
                    file.flush()
                    into = query[: form.start()] if form else query
                    command = f"{into} FROM INFILE '{file.name}' COMPRESSION 'none' FORMAT {name}"
                    return handle.query(command, "TabSeparated").bytes() or b"", name
            words = {key[6:]: value for key, value in asked.items() if key.startswith("param_")}
            return handle.query(query, name, params=words).bytes() or b"", name

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def clickhouse(directory: Path) -> Iterator[str]:
    """A server in a process of its own for the length of a block; yield its DSN."""
    command = (sys.executable, __file__, str(directory / "clickhouse"))
    here = str(Path(__file__).parent)
    server = Process(command, directory / "clickhouse.log", environment(PYTHONPATH=here))
    try:
        yield f"http://127.0.0.1:{server.line('listening ')}"
    finally:
        server.end()


def main(directory: str) -> None:
    """Serve until killed."""
    Connection.engine = Engine(directory)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)
    sys.stdout.write(f"listening {server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
