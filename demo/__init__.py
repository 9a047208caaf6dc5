"""A demonstration against a running server: attack shipped images, ask, show."""
