"""Many connections at once, and more than there may be."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from metastable.serving.door.clients import Proxies
from metastable.serving.door.limits import Limits
from tests.serving.door.served import Client, Served, request, serving

FEW = Limits(connections=4, client_connections=3, spare=2, head_seconds=0.5)


@pytest.fixture
def few() -> Iterator[Served]:
    with serving(FEW) as served:
        yield served


@contextlib.contextmanager
def many(served: Served, count: int, source: str = "127.0.0.1") -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client(source)) for _ in range(count)]
        yield clients


@pytest.mark.slow
def test_a_thousand_idle_connections_disturb_nobody() -> None:
    with serving() as served, contextlib.ExitStack() as stack:
        for one in range(1000):
            stack.enter_context(
                contextlib.closing(
                    socket.create_connection(served.address, source_address=(f"127.0.1.{1 + one % 5}", 0))
                )
            )
        with served.client() as client:
            assert client.post("/echo", bytes(100_000)).json["bytes"] == 100_000


def test_unfinished_bodies_of_150_connections_disturb_nobody() -> None:
    with serving() as served, many(served, 150) as clients:
        for client in clients:
            client.send(request("POST", "/echo", "Content-Length: 2000000") + bytes(10_000))
        with served.client() as other:
            assert other.get("/livez").status == 200
            assert other.post("/echo", bytes(10)).json["bytes"] == 10
        clients[0].send(bytes(1_990_000))
        assert clients[0].answer().json["bytes"] == 2_000_000


def test_one_client_has_only_so_many_connections(few: Served) -> None:
    with many(few, 3) as clients:
        assert all(client.get("/livez").status == 200 for client in clients)
        with few.client() as one_more:
            answer = one_more.get("/echo")
            assert (answer.status, answer.code, answer.fields["connection"]) == (429, "too_many", "close")
            assert int(answer.fields["retry-after"]) >= 1
            assert one_more.rest() == b""
        with few.client("127.0.0.2") as other:
            assert other.get("/echo").status == 200
    until_room(few)


def test_there_are_only_so_many_connections_and_livez_answers_all_the_same(few: Served) -> None:
    with many(few, 3) as first, many(few, 1, "127.0.0.2") as second:
        assert all(client.get("/livez").status == 200 for client in [*first, *second])
        with few.client("127.0.0.3") as one_more:
            answer = one_more.get("/echo", "X-Request-Id: mine")
            assert (answer.status, answer.code, answer.fields["x-request-id"]) == (503, "overloaded", "mine")
            assert int(answer.fields["retry-after"]) >= 1
            assert one_more.rest() == b""
        with few.client("127.0.0.3") as probe:
            answer = probe.get("/livez")
            assert (answer.status, answer.fields["connection"]) == (200, "close")
        with many(few, 3, "127.0.0.3") as silent:  # two are heard for a while, the third is not
            assert all(one.answer().status == 503 for one in reversed(silent))
        assert first[0].get("/echo").status == 200
    until_room(few)


def until_room(served: Served) -> None:
    """The places of connections that were closed are free again."""
    for _ in range(1000):
        with served.client() as client:
            if client.get("/echo").status == 200:
                return
    pytest.fail("there is no room any more")


def test_a_refused_client_may_send_its_body_and_still_read_why(few: Served) -> None:
    with many(few, 3) as clients:
        assert clients[-1].get("/livez").status == 200
        with few.client() as one_more:
            assert one_more.post("/echo", bytes(3_000_000)).status == 429


def test_trusted_proxies_and_unix_sockets_share_no_bound_of_connections(tmp_path: Path) -> None:
    for given in ({"proxies": Proxies(["127.0.0.1"])}, {"uds": tmp_path / "s"}):
        with serving(FEW, **given) as served, many(served, 4) as clients:
            assert all(client.get("/echo").status == 200 for client in clients)
