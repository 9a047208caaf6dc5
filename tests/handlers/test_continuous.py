import struct
import warnings
from types import SimpleNamespace

import pytest

from handlers import continuous

with warnings.catch_warnings():  # TorchServe forgets to close its version file
    warnings.simplefilter("ignore", ResourceWarning)
    from ts import service
    from ts.context import RequestProcessor
    from ts.protocol.otf_message_handler import create_predict_response


def packed_ids(message: bytes, ids: list[str]) -> list[str]:
    """Those of `ids` that TorchServe's answer speaks of."""
    return [id for id in ids if struct.pack("!i", len(id)) + id.encode() in message]


def context(rows: int) -> SimpleNamespace:
    processors = [RequestProcessor({}) for _ in range(rows)]
    return SimpleNamespace(
        stopping_criteria=None,
        set_response_header=lambda i, k, v: processors[i].add_response_property(k, v),
        get_response_headers=lambda i: processors[i].get_response_headers(),
        get_response_content_type=lambda i: "application/json",
        get_response_status=lambda i: (200, "OK"),
    )


def test_rows_without_a_body_are_left_out_and_come_again() -> None:
    pack = continuous.only_finished(create_predict_response)
    ids = {0: "first", 1: "second", 2: "third"}
    message = pack([None, "body", None], ids, "Prediction success", 200, context=context(3))
    assert packed_ids(bytes(message), list(ids.values())) == ["second"]


def test_a_failed_batch_ends_every_request() -> None:
    pack = continuous.only_finished(create_predict_response)
    ids = {0: "first", 1: "second"}
    message = pack(None, ids, "Prediction failed", 503)
    assert packed_ids(bytes(message), list(ids.values())) == ["first", "second"]


def test_installing_twice_wraps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "create_predict_response", create_predict_response)
    continuous.install()
    once = service.create_predict_response
    continuous.install()
    assert service.create_predict_response is once
    assert once.__wrapped__ is create_predict_response
