"""/openapi.json against the running door, by a tester of another project."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serving.door.running import Running

pytestmark = pytest.mark.slow

OPERATIONS = 13  # of them the description has at least so many
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)

# 503 and 504 are answers of a server that is well: it drains, or the deadline is 1 ms.  And no schema says
# which bytes are an image.
LEFT_OUT = [schemathesis.checks.not_a_server_error, positive_data_acceptance]


def test_what_the_door_does_is_what_it_says(served: Running) -> None:
    """Statuses, content types, headers and bodies are those of the description, and none is a 5xx."""
    schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
    found = [one.ok() for one in schema.get_all_operations()]
    assert len(found) >= OPERATIONS

    for operation in found:

        @EXAMPLES
        @given(case=operation.as_strategy())
        def judge(case: Any) -> None:
            answer = case.call()
            assert answer.status_code not in (500, 501, 502), answer.text
            case.validate_response(answer, excluded_checks=LEFT_OUT)

        judge()
