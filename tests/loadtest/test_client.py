import asyncio
import time

import numpy as np
import pytest

from loadtest import client, schedule
from loadtest.client import Address, Played, play, require_loopback
from loadtest.schedule import Load
from metastable.errors import MetastableError
from tests.launched import free_port
from tests.loadtest.servers import Behaviour, item, serving

ITEMS = [item(i % 10, 3, row=i) for i in range(40)]


def played(url: str, load: Load, n: int = 40) -> Played:
    return asyncio.run(play(Address(url), ITEMS[:n], load, load.due(n, seed=0)))


def test_answers_are_read_and_in_order() -> None:
    with serving(Behaviour()) as url:
        found = played(url, Load(scenario="constant", rate=200))
    assert [e.number for e in found.exchanges] == list(range(40))
    assert [e.outcome for e in found.exchanges] == ["answer"] * 40
    assert [e.verdict.label for e in found.exchanges if e.verdict] == [i % 10 for i in range(40)]
    assert all(e.due <= e.sent <= e.done for e in found.exchanges)


@pytest.mark.slow
def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    """Coordinated omission (Tene): a closed loop sends nothing while the server stalls."""
    stall = 0.6
    slow = {}
    for scenario in ("single", "constant"):
        behaviour = Behaviour(stall=(5, stall))
        with serving(behaviour) as url:
            found = played(url, Load(scenario=scenario, rate=40))  # type: ignore[arg-type]
        slow[scenario] = sum(e.latency > stall / 4 for e in found.exchanges)
    # 40 a second were due for 0.6 s, and those of the first three quarters waited long.
    assert slow["constant"] >= 12
    assert slow["single"] < slow["constant"] / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (Behaviour(silent=True), "timeout"),
        (Behaviour(hang_up=True), "disconnected"),
        (Behaviour(raw=b"\x00\xffnot http at all\r\n\r\n"), "garbage"),
        (Behaviour(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "disconnected"),
        (Behaviour(reply=("200 OK", b"<html>fine</html>")), "garbage"),
        (Behaviour(reply=("200 OK", b"[" * 300_000)), "garbage"),
        (Behaviour(reply=("200 OK", b"1" * 2_000_000)), "garbage"),
        (Behaviour(reply=("302 Found", b"")), "status 302"),
        (Behaviour(reply=("503 Unavailable", b'{"error": {"code": "overloaded"}}')), "overloaded"),
        (Behaviour(reply=("503 Unavailable", b"{}")), "status 503"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_way_to_fail_has_its_name(behaviour: Behaviour, outcome: str) -> None:
    with serving(behaviour) as url:
        found = played(url, Load(scenario="closed", concurrency=2, timeout=0.5), n=3)
    assert [e.outcome for e in found.exchanges] == [outcome] * 3


def test_a_dead_server_refuses() -> None:
    found = played(f"http://127.0.0.1:{free_port()}", Load(scenario="single"), n=3)
    assert [e.outcome for e in found.exchanges] == ["refused"] * 3


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_closed_loop_keeps_its_number_under_way(at_once: int) -> None:
    behaviour = Behaviour(service=0.005)
    with serving(behaviour) as url:
        found = played(url, Load(scenario="closed", concurrency=at_once), n=20)
    assert len(found.exchanges) == 20
    assert max(behaviour.seen) == at_once
    assert all(e.due == e.sent for e in found.exchanges)


def test_time_ends_a_block() -> None:
    with serving(Behaviour(service=0.05)) as url:
        found = played(url, Load(scenario="single", seconds=0.3))
    assert 1 <= len(found.exchanges) <= 7


def test_requests_that_cannot_be_sent_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_UNDER_WAY", 2)
    with serving(Behaviour(silent=True)) as url:
        found = played(url, Load(scenario="constant", rate=100, timeout=0.5), n=5)
    assert [e.outcome for e in found.exchanges] == ["timeout"] * 2 + ["unsent"] * 3


@pytest.mark.slow
def test_a_client_that_cannot_keep_up_notices() -> None:
    load, busy = Load(scenario="constant", rate=100), 0.05
    with serving(Behaviour()) as url:
        slow = asyncio.run(play(Address(url), ITEMS, load, load.due(20, 0), lambda: time.sleep(busy)))
    lags = [e.sent - e.due for e in slow.exchanges]
    assert np.quantile(lags, 0.9) > busy
    assert max(slow.beats) > 0.8 * busy


def test_a_fast_server_sees_the_arrivals_of_the_schedule() -> None:
    load = Load(scenario="poisson", rate=80)
    with serving(Behaviour()) as url:
        found = played(url, load)
    assert [e.due for e in found.exchanges] == pytest.approx(schedule.poisson(80, 40, seed=0).tolist())


@pytest.mark.parametrize("url", ["http://192.0.2.7:8080/x", "http://0.0.0.0/x", "http://[2001:db8::1]/"])
def test_other_machines_need_leave(url: str) -> None:
    with pytest.raises(MetastableError, match="--allow-remote"):
        require_loopback(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]:8/", "http://127.9.9.9"]
)
def test_this_machine_needs_none(url: str) -> None:
    require_loopback(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1/", "http://", "http://a b\n/"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(MetastableError, match="address"):
        Address(url)
