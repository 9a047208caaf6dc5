"""What an operator decides over requests, in one file: docs/operating.md explains it."""
