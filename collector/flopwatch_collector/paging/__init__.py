"""Paging: from an incident's action to a receiver that accepted it.

``page`` builds what is said (pure), ``outbox`` sends what was stored, ``webhook`` is the first channel.
A page is stored with the change of state it speaks of, and only then sent.
"""
