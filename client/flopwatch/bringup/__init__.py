"""Acceptance before service: a node, then its rack, then its pod, each gated on the one before."""
