"""Alembic migrations of the control store; run whenever a collector opens it."""
