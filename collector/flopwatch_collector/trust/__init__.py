"""Who a node is, by its certificate, and how it gets one. See docs/security.md."""

from flopwatch_collector.trust.identity import Identity, IdentityError, peer_identity

__all__ = ["Identity", "IdentityError", "peer_identity"]
