"""The driver child: the only process of the agent that loads NVIDIA's library.

A call into the driver may hang for ever, crash the process, or keep a card from being reset. So all of
it happens in an exec'd child, ``python -m flopwatch_agent.driver``, which the agent asks over pipes,
gives a deadline, and may lose without losing itself.

    parent ── length-prefixed msgpack ──► stdin    request
           ◄───────────────────────────── stdout   one reply for each request; nothing else is written

``messages`` is the protocol, ``calls`` the table of what is read, ``gpm`` and ``clock`` what needs a
memory of the sample before, ``card`` one card, ``events`` the Xid thread, ``record`` the writer of
fixtures. Every call answers a value, "not supported" or "failed with this code"; units are made base
units here and nowhere else.
"""
