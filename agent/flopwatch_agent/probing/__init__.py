"""Probes of our own on cards that nobody holds: who may, when, and what becomes of it.

    readings, shares ─► policy ─► schedule ──exec──► guard ──exec──► probe
                                    ▲                  │  lock, budget, witness (who else is on the card)
    tags ◄── lock ──────────────────┼──────────────────┤
    (their time counts for nobody)  └──── inbox ◄──────┘  results, also of probes started by hand

A context on a card costs its tenant time, so there is none while there is a tenant: `policy` says when a card
may be probed, `witness` ends the probe when somebody comes. Off until it is enabled.
"""
