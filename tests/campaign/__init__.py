"""Campaigns: faults at random, many of them, and an oracle outside the system that judges what arrived."""
