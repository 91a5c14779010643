"""Dashboard and HTTP API: a process of its own that only reads. Nothing here can delay a page."""
