import json

import pytest

from loadtest import outcome
from loadtest.items import npy
from loadtest.outcome import Reply
from metastable.client import Answer
from metastable.client.failure import refusal
from tests.loadtest.servers import image, verdict


def test_a_reply_is_what_a_run_needs_of_an_answer() -> None:
    found = Reply.of(Answer.of(verdict(npy(image(7, 0.25)), "fast")))
    assert (found.label, found.bare, found.score, found.setting, found.chains) == (7, 0, 0.25, "fast", 4)
    assert (found.model, found.version, found.runner) == ("toy", "1", "test")
    assert found.timings_ms["total"] == 4.0


@pytest.mark.parametrize("code", [outcome.ANSWER, outcome.UNSENT, outcome.GARBAGE, "timeout", "refused"])
def test_no_code_of_a_server_is_taken_for_one_of_ours(code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": ""}}).encode()
    assert outcome.named(refusal("http://x", 500, body)) == "status 500"


def test_the_servers_other_codes_are_outcomes() -> None:
    body = json.dumps({"error": {"code": "overloaded"}}).encode()
    assert outcome.named(refusal("http://x", 503, body)) == "overloaded"
