"""The simulator: nodes that were never built, over the real wire.

    scenario file ─► scenario (timelines of constant states) ─► player (driver-level readings)
                     ─► the agent's own interval, spool and stream ─► collector

Only the first two are this package's: whatever happens to a reading afterwards is the agent's code.
"""
