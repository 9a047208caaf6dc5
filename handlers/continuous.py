"""TorchServe's continuous batching, with one answer a request.

With `continuousBatching: true` TorchServe calls the handler again and again with all requests that
have not been answered.  Its Python side answers every one of them at every call (the mode is meant
for streams of tokens), but its Java side lets an answer leave requests out: they come again at the
next call.  So the function that packs an answer is narrowed to the requests that have ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

Pack = Callable[..., Any]


def only_finished(pack: Pack) -> Pack:
    """`pack` of TorchServe 0.12 (ts.protocol.otf_message_handler), without rows that are None.

    An answer that is not a 200 (the whole batch failed) is packed as it is: it ends every request.
    """

    @functools.wraps(pack)
    def packed(
        rows: Sequence[str | None] | None,
        ids: dict[int, str],
        message: str,
        code: int,
        *more: Any,
        **named: Any,
    ) -> Any:
        if code == 200 and rows is not None:
            ids = {index: id for index, id in ids.items() if rows[index] is not None}
        return pack(rows, ids, message, code, **named)

    return packed


def install() -> None:
    """Narrow the answers of this worker; once is enough, and more do no harm."""
    from ts import service

    if not hasattr(service.create_predict_response, "__wrapped__"):
        service.create_predict_response = only_finished(service.create_predict_response)
