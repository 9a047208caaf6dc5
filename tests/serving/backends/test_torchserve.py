"""TorchServe as a backend: what is sent, what its failures become, what cancelling does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from pathlib import Path

import pytest

from metastable.engine.timeline import Timeline
from metastable.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidOption,
    MetastableError,
    Overloaded,
    Unavailable,
)
from metastable.serving.backends import torchserve
from metastable.serving.backends.base import Follow, Judged
from tests.serving.backends.fake_torchserve import (
    SERVED,
    VERDICT,
    Answer,
    Behaviour,
    FakeDoor,
    World,
    answers,
    asked,
    resets,
    running,
    says,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def booked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request asks for a permit first."""
    monkeypatch.setattr(torchserve, "UNBOOKED", 0)


async def ask(world: World, **more: float) -> Judged:
    async with await world.backend.admit("fast") as room:
        return await world.backend.ask(asked(**more), room)  # type: ignore[arg-type]


async def hangs(headers: dict[str, str], body: bytes) -> Answer:
    await asyncio.Event().wait()
    return None


def after(go: asyncio.Event) -> Behaviour:
    """A verdict, once `go` is set."""

    async def waits(headers: dict[str, str], body: bytes) -> Answer:
        await go.wait()
        return await says(200, VERDICT)(headers, body)

    return waits


@pytest.mark.usefixtures("booked")
def test_an_answer_and_what_was_sent_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            assert world.backend.served == SERVED
            judged = await ask(world, deadline=time.monotonic() + 60, seed=5)
            assert judged.seconds == {"anomaly": 0.002, "queue": 0.003, "purify": 0.004, "classify": 0.005}
            assert set(judged.body) == set(VERDICT) - {"request_id", "timings_ms"}
            assert judged.body["image"] == {
                "format": "PNG",
                "original_size": [8, 6],
                "resized": True,
                "notes": [],
            }
            [(headers, body)] = world.server.seen
            assert body[:6] == b"\x93NUMPY"
            assert headers["content-type"] == "application/octet-stream"
            assert headers["x-metastable-permit"] == "token-0"
            assert headers["x-metastable-setting"] == "fast"
            assert (headers["x-metastable-top-k"], headers["x-metastable-seed"]) == ("2", "5")
            assert 50_000 < int(headers["x-metastable-deadline-ms"]) <= 60_000
            assert 0 <= time.monotonic() - float(headers["x-metastable-sent"]) < 60
            assert world.door.told == {"admit": ["token-0"], "release": [], "cancel": []}

    asyncio.run(main())


def torchserves(status: int) -> Behaviour:
    """As TorchServe itself says what went wrong."""
    return says(status, {"code": status, "type": "SomeException", "message": "Worker died."})


OURS = {"error": {"code": "overloaded", "message": "later"}, "request_id": "x"}


@pytest.mark.parametrize(
    ("behaviour", "kind", "after"),
    [
        (resets, Unavailable, 30.0),
        (torchserves(500), Unavailable, 30.0),
        (torchserves(507), Unavailable, 30.0),
        (torchserves(503), Unavailable, 30.0),
        (torchserves(404), Unavailable, 30.0),
        (says(503, OURS, Retry_After="7"), Overloaded, 7.0),
        (says(504, {"error": {"code": "deadline_exceeded", "message": "late"}}), DeadlineExceeded, None),
        (says(422, {"error": {"code": "invalid_option", "message": "no"}}), InvalidOption, None),
        (says(500, {"error": {"code": "engine_failure", "message": "x"}}), EngineFailure, None),
        (says(500, {"error": {"code": "internal", "message": "x"}}), MetastableError, None),
        (says(413, ""), MetastableError, None),
        (says(200, "not json"), MetastableError, None),
        (says(200, ["a list"]), MetastableError, None),
    ],
)  # fmt: skip
def test_what_goes_wrong_becomes_one_of_our_errors(
    tmp_path: Path, behaviour: Behaviour, kind: type[MetastableError], after: float | None
) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.server.behaviour = behaviour
            world.backend._took = 30.0  # the last time that it was not ready
            with pytest.raises(kind) as failed:
                await ask(world)
            assert type(failed.value) is kind
            assert getattr(failed.value, "retry_after", None) == pytest.approx(after, abs=5.0)

    asyncio.run(main())


def test_what_a_worker_takes_is_one_part_of_a_timeline(tmp_path: Path) -> None:
    async def main() -> None:
        timeline = Timeline()
        async with running(tmp_path) as world:
            for behaviour in (answers, resets):
                world.server.behaviour = behaviour
                question = dataclasses.replace(asked(), follow=Follow("00-trace", timeline))
                with contextlib.suppress(Unavailable):
                    async with await world.backend.admit("fast") as room:
                        await world.backend.ask(question, room)
            assert [headers["traceparent"] for headers, _ in world.server.seen[:2]] == 2 * ["00-trace"]
        first, second = timeline.parts()
        assert first.stage == second.stage == "worker"
        assert first.began < first.ended <= second.began < second.ended

    asyncio.run(main())


def test_a_broken_answer_is_not_ready_until_a_prediction_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.server.behaviour = resets
            with pytest.raises(Unavailable):
                await ask(world)
            assert not world.backend.ready
            with pytest.raises(Unavailable, match="being started"):
                await world.backend.admit("fast")
            with pytest.raises(Unavailable):
                world.backend.check_room("fast")
            await world.until(lambda: len(world.server.seen) > 2)  # it tries, and fails
            assert not world.backend.ready
            world.server.behaviour = says(200, VERDICT)
            await world.until(lambda: world.backend.ready)
            await ask(world)

    asyncio.run(main())


def test_clients_are_told_to_come_back_when_the_last_time_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            backend = world.backend
            world.server.behaviour = resets
            backend._took = 40.0
            with pytest.raises(Unavailable):
                await ask(world)
            backend._lost -= 30.0  # half a minute later
            with pytest.raises(Unavailable) as refused:
                await backend.admit("fast")
            assert refused.value.retry_after == pytest.approx(10.0, abs=5.0)
            backend._lost -= 30.0  # and it takes longer this time
            with pytest.raises(Unavailable) as refused:
                await backend.admit("fast")
            assert refused.value.retry_after == 1.0
            world.server.behaviour = says(200, VERDICT)
            await world.until(lambda: backend.ready)
            assert 60.0 < backend._took < 120.0

    asyncio.run(main())


def test_a_worker_that_listens_and_does_not_predict_is_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path, FakeDoor()) as world:
            world.worker()
            await asyncio.sleep(4 * torchserve.LOOK)
            assert not world.backend.ready
            await world.listen()
            await world.until(lambda: world.backend.ready)
        assert [headers["x-metastable-setting"] for headers, _ in world.server.seen] == [
            "none"
        ]  # the cheapest

    asyncio.run(main())


def test_a_dead_worker_is_noticed_and_the_next_one_found(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            path = next(iter(world.backend._workers))
            path.rename(path.with_name("1.sock"))
            (channel,) = world.backend._workers.values()
            channel._writer.transport.abort()  # as the end of a process does
            await world.until(lambda: not world.backend.ready)
            (tmp_path / "control" / "2.sock").touch()  # of one that is dead
            await world.until(lambda: world.backend.ready)
            assert [path.name for path in world.backend._workers] == ["1.sock"]
            assert not (tmp_path / "control" / "2.sock").exists()
            await ask(world)

    asyncio.run(main())


@pytest.mark.usefixtures("booked")
def test_no_room_is_known_without_asking(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.backend.check_room("fast")
            world.door.full = Overloaded("too much", 4.0)
            with pytest.raises(Overloaded) as refused:
                await world.backend.admit("fast")
            assert refused.value.retry_after == 4.0

            def known() -> bool:
                try:
                    world.backend.check_room("fast")
                except Overloaded as error:
                    return error.retry_after == 4.0
                return False

            await world.until(known)
            world.door.full = None
            await world.until(lambda: not known())
            assert world.server.seen == []

    asyncio.run(main())


@pytest.mark.usefixtures("booked")
def test_a_room_that_is_not_used_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            async with await world.backend.admit("fast"):
                pass
            await world.until(lambda: world.door.told["release"] == ["token-0"])
            # One that is cancelled while it asks, too.
            asking = asyncio.create_task(world.backend.admit("fast"))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert asking.cancelled()
            await world.until(lambda: len(world.door.told["release"]) == len(world.door.told["admit"]))

    asyncio.run(main())


def test_cancelling_tells_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.server.behaviour = hangs
            asking = asyncio.create_task(ask(world))
            await world.until(lambda: world.server.seen)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            job = world.server.seen[0][0]["x-metastable-job"]
            await world.until(lambda: world.door.told["cancel"] == [job])
            assert world.backend.ready

    asyncio.run(main())


def test_a_few_come_without_a_permit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve, "UNBOOKED", 2)

    async def main() -> None:
        async with running(tmp_path) as world:
            go = asyncio.Event()
            world.server.behaviour = after(go)
            asking = [asyncio.create_task(ask(world)) for _ in range(3)]
            await world.until(lambda: world.server.inside == 3)
            assert world.door.told["admit"] == ["token-0"]
            permits = [headers.get("x-metastable-permit") for headers, _ in world.server.seen]
            assert sorted(map(str, permits)) == ["None", "None", "token-0"]
            asking[0].cancel()  # its place is free again
            await asyncio.gather(asking[0], return_exceptions=True)
            await world.until(lambda: len(world.door.told["cancel"]) == 1)
            asking.append(asyncio.create_task(ask(world)))
            await world.until(lambda: world.server.inside == 4)
            assert world.door.told == {
                "admit": ["token-0"],
                "release": [],
                "cancel": world.door.told["cancel"],
            }
            go.set()
            await asyncio.gather(*asking[1:])

    asyncio.run(main())


def test_after_a_worker_has_refused_one_the_next_one_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.server.behaviour = says(503, OURS, Retry_After="7")
            for wanted in ([], ["token-0"]):
                with pytest.raises(Overloaded):
                    await ask(world)
                assert world.door.told["admit"] == wanted

    asyncio.run(main())


def test_where_there_is_no_room_everyone_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            world.door.full = Overloaded("too much", 4.0)

            def known() -> bool:
                try:
                    world.backend.check_room("fast")
                except Overloaded:
                    return True
                return False

            await world.until(known)
            with pytest.raises(Overloaded) as refused:
                await ask(world)
            assert refused.value.retry_after == 4.0
            assert world.server.seen == []

    asyncio.run(main())


@pytest.mark.usefixtures("booked")
def test_no_more_than_the_window_is_with_torchserve(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeDoor(window=3)) as world:
            go = asyncio.Event()
            world.server.behaviour = after(go)
            asking = [asyncio.create_task(ask(world)) for _ in range(10)]
            await world.until(lambda: len(world.door.told["admit"]) == 10 and world.server.inside == 3)
            asking[9].cancel()  # it waits here: TorchServe never hears of it
            await asyncio.gather(asking[9], return_exceptions=True)
            await world.until(lambda: world.door.told["release"] == ["token-9"])
            go.set()
            await asyncio.gather(*asking[:9])
            assert (len(world.server.seen), world.server.most_inside) == (9, 3)
            assert world.door.told["cancel"] == []

    asyncio.run(main())


def test_a_deadline_ends_the_wait_even_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve, "GRACE", 0.01)

    async def main() -> None:
        async with running(tmp_path) as world:
            world.server.behaviour = hangs
            with pytest.raises(DeadlineExceeded):
                await ask(world, deadline=time.monotonic() + 0.2)
            assert len(world.server.seen) == 1
            await world.until(lambda: len(world.door.told["cancel"]) == 1)
            with pytest.raises(DeadlineExceeded):
                await ask(world, deadline=time.monotonic() - 1)

    asyncio.run(main())


@pytest.mark.parametrize("drain", [0.0, 60.0])
def test_closing_finishes_what_it_has_time_for(tmp_path: Path, drain: float) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            go = asyncio.Event()
            world.server.behaviour = after(go)
            asking = asyncio.create_task(ask(world))
            await world.until(lambda: world.server.seen)
            closing = asyncio.create_task(world.backend.close(drain))
            await asyncio.sleep(0.05)
            assert not world.backend.ready
            with pytest.raises(Draining):
                await world.backend.admit("fast")
            go.set() if drain else None
            await closing
            if drain:
                assert (await asking).body["label"] == 1
            else:
                with pytest.raises(Draining):
                    await asking
            go.set()

    asyncio.run(main())


def test_connections_are_kept_and_those_that_ended_are_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            idle = world.backend._exchange._idle
            await ask(world)
            kept = list(idle)
            await ask(world)
            assert idle == kept
            await asyncio.gather(*(ask(world) for _ in range(3)))
            assert len(idle) <= 3
            # One that the other side closed meanwhile is not used again, and nobody notices.
            await world.server.stop()
            await world.listen()
            await world.until(lambda: not any(one.reusable() for one in idle))
            await ask(world)
            assert len(idle) == 1
            # Nor is one that says so.
            world.server.behaviour = says(422, OURS, connection="close")
            with pytest.raises(Overloaded):
                await ask(world)
            assert idle == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"]
)
def test_what_is_no_http_is_unavailable(tmp_path: Path, garbage: bytes) -> None:
    async def main() -> None:
        async with running(tmp_path) as world:
            await world.server.stop()
            (tmp_path / "inference.sock").unlink(missing_ok=True)
            world.server.raw = garbage
            await world.listen()
            with pytest.raises(Unavailable):
                await ask(world)
            assert world.backend._exchange._idle == []

    asyncio.run(main())
