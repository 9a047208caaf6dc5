"""The fast path: chains of many requests, advanced together.

No HTTP and no environment.  The only files are exported artifacts, which some runners need.
"""
