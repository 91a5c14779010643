"""The control store: state that needs transactions.

Incidents, the outbox of pages, the observations that rules judged, silences, maintenance windows, the
audit log, the inventory of record and leases. SQLAlchemy over SQLite by default, PostgreSQL where several
collectors share one store. Apart from telemetry, so that no query over telemetry can delay a page.
"""
