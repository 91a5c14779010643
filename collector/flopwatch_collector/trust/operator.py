"""What an operator does about trust: authorities, tokens, nodes that are denied. Beside a running collector.

The collector follows within ten seconds: it reads the files and the control store again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flopwatch_collector import config as configuration
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.tls import authorities_directory
from flopwatch_collector.trust import denylist, tokens
from flopwatch_collector.trust.authority import Authorities, pin
from flopwatch_collector.trust.records import refused
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration


class Operator:
    """One person at the host of a collector.

    Args:
        config: the collector's file; None: the default one.
        data: its data directory, where no file says so.
        who: for the audit log.

    Attributes:
        authorities: of the data directory.
        leaf_life: how long a node's certificate holds.
    """

    def __init__(self, config: Path | None, data: str | None, who: str) -> None:
        self._config = configuration.load(config, os.environ, {"--data": ("data", data)})
        self._who = who
        self.authorities = Authorities(authorities_directory(self._config.directory))
        self.leaf_life = self._config.tls.leaf_life

    def init(self, now_unix_ms: int) -> str:
        """Make the first authority; return its pin. Raises: UsageError: there is one, or one is brought."""
        if self._config.tls.brought is not None:
            raise UsageError(
                "tls.certificate is brought: who brings certificates needs no authority"
            )
        self._config.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return pin(self.authorities.init(now_unix_ms).certificate)

    def create_token(
        self,
        *,
        cluster: str,
        nodes: str,
        uses: int,
        life: Duration,
        replaces: bool,
        now_unix_ms: int,
    ) -> str:
        """Return the word of a new token."""
        token = tokens.Token(
            id="",
            cluster=cluster,
            nodes=nodes,
            replaces=replaces,
            uses_left=uses,
            created_unix_ms=now_unix_ms,
            expires_unix_ms=now_unix_ms + life.milliseconds,
            by=self._who,
        )
        authority = self.authorities.authority()
        with self._control() as store:
            return tokens.create(store, token, authority.certificate)

    def tokens(self) -> list[dict[str, Any]]:
        """Every token that is kept, newest first."""
        with self._control() as store:
            return [asdict(token) for token in tokens.tokens(store)]

    def revoke(self, id_: str, now_unix_ms: int) -> None:
        """Let a token work no more."""
        with self._control() as store:
            tokens.revoke(store, id_, self._who, now_unix_ms)

    def deny(self, cluster: str, node: str, why: str, now_unix_ms: int) -> None:
        """Refuse a node, whatever certificate it shows."""
        denied = denylist.Denied(
            cluster=cluster,
            node=node,
            denied_unix_ms=now_unix_ms,
            issued_before_unix_ms=None,
            by=self._who,
            why=why,
        )
        with self._control() as store:
            denylist.deny(store, denied)

    def admit(self, cluster: str, node: str, now_unix_ms: int) -> None:
        """Refuse a node no more."""
        with self._control() as store:
            denylist.admit(store, cluster, node, self._who, now_unix_ms)

    def denied(self) -> list[dict[str, Any]]:
        """Every node that is refused."""
        with self._control() as store:
            return [asdict(one) for one in denylist.listed(store)]

    def refusals(self) -> list[dict[str, Any]]:
        """Who was refused lately, newest first: of the newest thousand entries of the audit log."""
        with self._control() as store:
            return refused(store)

    @contextmanager
    def _control(self) -> Iterator[ControlStore]:
        store = ControlStore.open(self._config.control_dsn)
        try:
            yield store
        finally:
            store.close()
