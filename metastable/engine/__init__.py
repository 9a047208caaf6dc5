"""The fast path: chains of many requests, advanced together.  No HTTP; the only files are artifacts."""
