"""The fast path: chains of many requests, advanced together.  No HTTP, no environment; only artifacts are files."""
