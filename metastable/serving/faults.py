"""How a fault of our own is logged: where it happened, and nothing that a client wrote."""

from __future__ import annotations

import logging
import traceback

_LOG = logging.getLogger("metastable.serving")


def report(what: str, error: BaseException | None) -> None:
    """Log the type and the place of an error, and of what caused it; its message may quote a request.

    `what`: a sentence of ours.
    """
    lines = [what]
    while error is not None:
        lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
        lines.append(f"{type(error).__module__}.{type(error).__qualname__} (its message may quote a client)")
        error = error.__cause__ or error.__context__
    _LOG.error("%s", "\n".join(lines))
