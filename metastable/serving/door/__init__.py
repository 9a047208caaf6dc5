"""The HTTP contract: what comes in over HTTP, checked and bounded, and what goes out."""
