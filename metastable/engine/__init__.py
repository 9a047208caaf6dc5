"""The fast path: chains of many requests, advanced together.  No HTTP, no files, no environment."""
