import dataclasses
from typing import Any

import pytest

from loadtest import validity
from loadtest.arms import parse_arm
from loadtest.figures import ArmFigures, Client, Identity, Latency
from loadtest.summary import arm_summary
from tests.loadtest.servers import Behaviour, serving
from tests.loadtest.test_report import report_of

ARM = parse_arm("fast", "http://127.0.0.1")


def summary(**changes: Any) -> ArmFigures:
    sound = dataclasses.replace(
        arm_summary(ARM, [], [], 100.0),
        n=200,
        answered=200,
        outcomes={"answer": 200},
        identity=Identity(["m"], ["d"], ["r"], ["fast"]),
        client=Client(1.0, 1.0, 0.2),
        latency_ms=median(50.0),
    )
    return dataclasses.replace(sound, **changes)


def median(value: float) -> dict[str, Latency]:
    return {"p50": Latency(value, None, None, 6, 200)}


def client(**changes: float) -> dict[str, Any]:
    return {"client": dataclasses.replace(summary().client, **changes)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"answered": 198, "outcomes": {"answer": 198, "overloaded": 2}}, None),
        ({"answered": 197, "outcomes": {"answer": 197, "timeout": 3}}, "3 of 200 requests got no answer"),
        ({"answered": 199, "outcomes": {"answer": 199, "garbage": 1}}, "1 replies could not be read"),
        ({"identity": Identity(["m", "n"], ["d"], ["r"], ["fast"])}, "the model changed"),
        ({"identity": Identity(["m"], ["d"], ["r"], ["none"])}, "none answered"),
        (client(send_lag_p99_ms=9.0), None),
        (client(send_lag_p99_ms=11.0), "the client was the bottleneck: it sent requests late"),
        (client(wake_lag_p99_ms=11.0), "the client was the bottleneck: it woke late"),
        (client(busy=0.95), "the client was the bottleneck: it used 95 %"),
        ({**client(send_lag_p99_ms=60.0), "latency_ms": median(1000.0)}, None),
        ({"outcomes": {"answer": 199, "unsent": 1}}, "1 requests could not be sent"),
    ],
)
def test_reasons(changes: dict[str, Any], said: str | None) -> None:
    found = validity.reasons([ARM], [summary(**changes)])
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith("fast: ")
        assert said in found[0]


@pytest.mark.slow
def test_a_client_that_runs_out_of_sockets_makes_no_valid_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.client.MOST_UNDER_WAY", 2)
    with serving(Behaviour(silent=True)) as url:
        found = report_of(url, folder=tmp_path)
    assert any("could not be sent" in reason for reason in found["reasons"])
    assert "unsent" in found["arms"][0]["outcomes"]
