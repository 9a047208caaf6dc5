"""The control channel of a worker, over its real socket, and what the service makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from handlers.control import Control
from handlers.door import KEPT, Door
from handlers.requests import Request
from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.serving.control import MOST_BYTES, UNCOUNTED, served_of
from tests.handlers.test_service import png, request, service

pytestmark = pytest.mark.slow


class Asking:
    """A connection, as the door has one."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.settimeout(60)
        self.lines = self.socket.makefile("rb")

    def send(self, **asked: Any) -> None:
        self.socket.sendall(json.dumps(asked).encode() + b"\n")

    def ask(self, what: str, **more: Any) -> Any:
        """The answer, or what it was refused with."""
        self.send(id=7, ask=what, **more)
        said = json.loads(self.lines.readline())
        assert said.pop("id") == 7
        return next(iter(said.values()))

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


class World:
    """A service behind a door, of which `later` is how far its clock is ahead."""

    def __init__(self, tiny: Bundle, folder: Path, limits: EngineLimits) -> None:
        self.later = 0.0
        self.registry = CollectorRegistry()
        self.service = service(tiny, self.registry, engine_limits=limits, sizes=(1, 4))
        self.door = self.service.open(window=5)
        self.door._clock = lambda: time.monotonic() + self.later
        self.engine = self.service._engine
        self.control = Control(folder, self.door)

    @property
    def out(self) -> int:
        return self.engine.admission.out

    def until_out(self, permits: int) -> None:
        """A connection's thread takes its time to see that it ended."""
        ends = time.monotonic() + 60
        while self.out != permits and time.monotonic() < ends:
            time.sleep(0.01)
        assert self.out == permits

    def step(self, *requests: Request) -> list[tuple[int, str] | None]:
        """Status and code of each that has ended."""
        return [
            None if r is None else (r.status, json.loads(r.body).get("error", {}).get("code", ""))
            for r in self.service.step(requests)
        ]


@pytest.fixture
def world(tiny: Bundle, tmp_path: Path) -> Iterator[World]:
    # A segment is a chain, and little work may wait: requests stay for some steps, and the second is refused.
    made = World(tiny, tmp_path, EngineLimits(segment=1e-6, backlog=1e-6, few=1))
    yield made
    made.control.close()


@pytest.fixture
def asking(world: World) -> Iterator[Asking]:
    made = Asking(world.control.path)
    yield made
    made.close()


def sent(token: str = "none such", job: str = "j", **options: str) -> Request:
    made = request(setting="langevin") if not options else request(**options)
    return Request(made.id, {**made.headers, "x-metastable-permit": token, "X-METASTABLE-JOB": job}, made.row)


def test_it_says_what_is_served(world: World, asking: Asking, tiny: Bundle) -> None:
    found = asking.ask("describe")
    served = served_of(found["served"])
    assert (served.name, served.digest, served.shape) == ("tiny", tiny.digest, (3, 32, 32))
    assert (served.classes, served.settings) == (tuple(tiny.classes), tiny.settings.names)
    assert (served.default, served.allow_seed, served.runner) == ("fast", False, "torch")
    assert served.fit == tiny.fit
    assert found["window"] == 5
    assert world.control.path.name == f"{os.getpid()}.sock"


def test_a_token_is_the_room_of_one_request(world: World, asking: Asking) -> None:
    token = asking.ask("admit", setting="langevin")["token"]
    assert len(token) >= 20
    refused = asking.ask("admit", setting="langevin")
    assert refused["code"] == "overloaded"
    assert refused["retry_after"] > 0
    mine, without = sent(token), sent()
    assert world.step(mine, without) == [None, (503, "overloaded")]
    assert world.out == 1  # it took no second permit
    again = sent(token, job="k")
    assert world.step(mine, again)[1] == (503, "overloaded")  # once, and then it counts for nothing
    while (done := world.step(mine)[0]) is None:
        pass
    assert done == (200, "")
    assert world.out == 0
    assert world.step(sent(token))[0] in (None, (200, ""))  # as without a token


def test_a_token_for_another_setting_is_given_back(world: World, asking: Asking) -> None:
    token = asking.ask("admit", setting="none")["token"]
    mine = sent(token)
    world.step(mine)
    assert world.out == 1
    world.step()
    assert world.out == 0


def test_a_refused_request_gives_its_permit_back(world: World, asking: Asking) -> None:
    token = asking.ask("admit", setting="none")["token"]
    assert world.step(sent(token, setting="magic")) == [(422, "invalid_option")]
    assert world.out == 0
    token = asking.ask("admit", setting="none")["token"]
    broken = sent(token, setting="none")
    assert world.step(Request(broken.id, broken.headers, {"body": b"no image"})) == [
        (415, "unsupported_image")
    ]
    assert world.out == 0


def test_permits_come_back_by_release_by_leaving_and_by_time(world: World, asking: Asking) -> None:
    token = asking.ask("admit", setting="none")["token"]
    asking.ask("release", token="another")
    assert world.out == 1
    asking.ask("release", token=token)
    asking.ask("release", token=token)  # more than once does no harm
    assert world.out == 0

    other = Asking(world.control.path)
    other.ask("admit", setting="none")
    other.close()
    world.until_out(0)

    asking.ask("admit", setting="none")
    world.later = 0.9 * KEPT
    assert asking.ask("state")["out"] == 1
    world.later = 1.1 * KEPT
    assert asking.ask("state")["out"] == 0
    asking.ask("admit", setting="none")
    world.later = 2.3 * KEPT
    world.step()  # a door that says nothing more is no reason to keep it
    assert world.out == 0


def test_the_state_says_what_would_be_refused(world: World, asking: Asking) -> None:
    idle = asking.ask("state")
    assert (idle["backlog"], idle["out"]) == (0, 0)
    prices = {name: one["price"] for name, one in idle["settings"].items()}
    assert prices["langevin"] > prices["none"] > 0
    assert {one["refused"] for one in idle["settings"].values()} == {None}
    asking.ask("admit", setting="langevin")
    busy = asking.ask("state")
    assert busy["backlog"] == pytest.approx(prices["langevin"])
    assert busy["out"] == 1
    refused = {name for name, one in busy["settings"].items() if one["refused"] is not None}
    # What costs less goes before it.
    assert refused == {name for name, price in prices.items() if price >= prices["langevin"]}
    assert busy["settings"]["langevin"]["refused"]["code"] == "overloaded"


def test_the_metrics_say_what_waits_before_a_request_comes(world: World, asking: Asking) -> None:
    def backlog() -> float | None:
        return world.registry.get_sample_value("metastable_backlog_seconds")

    token = asking.ask("admit", setting="langevin")["token"]
    busy = asking.ask("state")["backlog"]
    assert backlog() == busy > 0
    asking.ask("release", token=token)
    asking.ask("state")
    assert backlog() == 0


def test_stages_are_counted_by_the_door_alone(world: World) -> None:
    mine = sent()
    while (done := world.step(mine)) == [None]:
        pass
    assert done == [(200, "")]
    value = world.registry.get_sample_value
    assert value("metastable_chains_count", {"setting": "langevin"}) == 1
    assert value("metastable_stage_seconds_count", {"stage": "purify"}) is None


def test_a_cancelled_request_is_answered_and_its_chains_leave(world: World, asking: Asking) -> None:
    mine, other = sent(asking.ask("admit", setting="langevin")["token"], job="mine"), sent(job="other")
    world.step(mine)
    assert world.engine.chains.used > 0
    asking.ask("cancel", job="mine")
    assert world.step(mine, other)[0] == (499, "cancelled")
    asking.ask("cancel", job="other")
    assert world.step(other) == [(499, "cancelled")]
    assert (world.engine.chains.used, world.out, world.engine.held) == (0, 0, 0)


def test_a_request_that_is_cancelled_before_it_comes_costs_nothing(world: World, asking: Asking) -> None:
    token = asking.ask("admit", setting="langevin")["token"]
    asking.ask("cancel", job="early")
    assert world.step(sent(token, job="early")) == [(499, "cancelled")]
    assert world.out == 0
    world.later = 1.1 * KEPT
    assert world.door.given_up() == frozenset()


def test_what_no_client_asked_for_counts_as_no_verdict(world: World) -> None:
    def verdicts() -> float | None:
        labels = {"setting": "none"}
        return world.registry.get_sample_value("metastable_chains_count", labels)

    assert world.step(sent(setting="none", job=UNCOUNTED + "1")) == [(200, "")]
    assert not verdicts()
    assert world.step(sent(setting="none")) == [(200, "")]
    assert verdicts() == 1


def test_waiting_in_torchserve_counts_in_the_deadline(world: World) -> None:
    def waited(seconds: float) -> Request:
        made = sent(setting="none", deadline_ms="60000")
        return Request(
            made.id, {**made.headers, "X-Metastable-Sent": repr(time.monotonic() - seconds)}, made.row
        )

    assert world.step(waited(61)) == [(504, "deadline_exceeded")]
    assert world.step(waited(1)) == [(200, "")]
    made = sent(setting="none")
    nonsense = Request("n", {**made.headers, "X-Metastable-Sent": "soon"}, {"body": png()})
    assert world.step(nonsense) == [(200, "")]


def test_without_a_door_its_headers_are_unknown_options(tiny: Bundle) -> None:
    [reply] = service(tiny, CollectorRegistry(), sizes=(1,)).answer([sent()])
    assert reply.status == 422


def test_lines_in_one_piece_are_answered_in_order(asking: Asking) -> None:
    asking.socket.sendall(b'{"id": "a", "ask": "state"}\n{"id": "b", "ask": "release", "token": "t"}\n')
    assert [json.loads(asking.lines.readline())["id"] for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [b"no json\n", b"[1]\n", b'{"ask": "state"}\n', b"x" * (MOST_BYTES + 10), b"[" * 60_000 + b"\n"],
    ids=["text", "list", "no id", "too long", "deep"],
)
def test_what_is_no_request_ends_the_connection(asking: Asking, world: World, line: bytes) -> None:
    asking.ask("admit", setting="none")
    asking.socket.sendall(line)
    with contextlib.suppress(ConnectionResetError):  # it may leave before it has read all
        assert asking.lines.readline() == b""
    world.until_out(0)
    other = Asking(world.control.path)  # and no other one
    assert other.ask("state")["out"] == 0
    other.close()


def test_unknown_verbs_and_missing_fields_are_refused(asking: Asking) -> None:
    assert asking.ask("dance")["code"] == "malformed_request"
    assert asking.ask(["state"])["code"] == "malformed_request"  # type: ignore[arg-type]
    assert asking.ask("admit")["code"] == "malformed_request"
    assert asking.ask("cancel", job=3)["code"] == "malformed_request"
    assert asking.ask("admit", setting="magic")["code"] == "invalid_option"


def test_many_connections_and_a_step_get_along(world: World) -> None:
    def ask(times: int) -> None:
        one = Asking(world.control.path)
        for _ in range(times):
            found = one.ask("admit", setting="none")
            if "token" in found:
                one.ask("release", token=found["token"])
        one.close()

    threads = [threading.Thread(target=ask, args=(50,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        world.step()
    world.until_out(0)


def test_a_socket_of_the_same_name_is_no_obstacle(world: World, tmp_path: Path) -> None:
    # Process ids come again.
    second = Control(tmp_path, Door.__new__(Door))
    assert second.path == world.control.path
    second.close()
    assert list(tmp_path.glob("*")) == []
