"""TorchServe under supervision: a fake one that ends again and again, and whole lives of the real one."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import java, torchserve
from deploy.run_folder import Failed, RunFolder
from deploy.starting import CONTROL_FOLDER, worker_environment
from deploy.torchserve import Supervised
from export import mar
from metastable.errors import Unavailable
from metastable.images import decode
from metastable.serving import control
from metastable.serving.backends import torchserve as torchserve_backend
from metastable.serving.backends.base import Judged, Question
from metastable.serving.options import RequestOptions
from tests.launched import PATIENCE, REPOSITORY, free_port


class Group:
    """In the place of a ServerGroup: it runs until it is told to end."""

    def __init__(self) -> None:
        self.alive, self.stopped = True, 0

    def running(self) -> bool:
        return self.alive

    def stop(self, at_once: Callable[[], bool]) -> list[int]:
        self.alive, self.stopped = False, self.stopped + 1
        return []


class World:
    """Supervises fakes; `said` is what it logs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        self.groups: list[Group] = []
        self.said: list[str] = []
        self.ends = True
        self.run = RunFolder(folder / "run")
        monkeypatch.setattr(torchserve, "LOOK", 0.001)
        monkeypatch.setattr(torchserve.log, "warning", lambda text, *of: self.said.append(text % of))

        async def no_sleep(seconds: float, sleep: Any = asyncio.sleep) -> None:
            await sleep(min(seconds, 0.001))

        monkeypatch.setattr(torchserve.asyncio, "sleep", no_sleep)
        self.supervised = Supervised(
            *(self.run, folder / "metastable.mar", folder),
            torchserve_metrics_port=2,
            **more,
            launch=self.launch,  # type: ignore[arg-type]
        )

    def launch(self, *_: object) -> Group:
        (self.run.scratch / "inference.sock").touch(exist_ok=False)  # the last one's has been cleared away
        self.groups.append(Group())
        self.groups[-1].alive = not self.ends
        return self.groups[-1]


def test_pauses_grow_up_to_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)

    async def main() -> None:
        async with world.supervised, asyncio.timeout(60):
            while len(world.said) < 7:
                await asyncio.sleep(0.01)
            with pytest.raises(Failed, match="ended by itself while starting"):
                await world.supervised.until_ready(60)

    asyncio.run(main())
    pauses = [float(line.split(" in ")[1].split(" ")[0]) for line in world.said[:7]]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert all("ended by itself" in line for line in world.said)
    assert {group.stopped for group in world.groups} == {1}  # what it left behind is cleared away
    world.run.close()


def test_leaving_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.ends = False

    async def main() -> None:
        async with world.supervised:
            with pytest.raises(Failed, match="no prediction within"):
                await world.supervised.until_ready(0.05)
            assert world.groups[0].running()

    asyncio.run(main())
    assert [group.stopped for group in world.groups] == [1]
    assert world.said == []
    world.run.close()


def test_one_that_never_predicts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    world = World(tmp_path, monkeypatch, patience=0.01, restarted=lambda: counted.append(len(world.groups)))
    world.ends = False

    async def main() -> None:
        async with world.supervised, asyncio.timeout(60):
            while len(world.groups) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert counted[:1] == [1]  # not when it was started first
    assert len(counted) >= len(world.groups) - 1
    assert "made no prediction for 0.01 s" in world.said[0]
    assert world.groups[0].stopped == 1
    world.run.close()


def test_one_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)

    def fails(*_: object) -> Group:
        raise OSError(12, "Cannot allocate memory")

    world.supervised._launch = fails  # type: ignore[assignment]

    async def main() -> None:
        async with world.supervised, asyncio.timeout(60):
            while len(world.said) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert "cannot be started (Cannot allocate memory)" in world.said[1]
    world.run.close()


def test_only_the_owner_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)

    async def main() -> None:
        async with world.supervised:
            found = world.run.config.read_text()
            assert f"inference_address=unix:{world.run.scratch}/inference.sock" in found
            for folder in (world.run.scratch, world.run.scratch / "control"):
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    asyncio.run(main())
    monkeypatch.setenv(CONTROL_FOLDER, "somewhere")
    monkeypatch.setenv("METASTABLE_METRICS_PORT", "8083")  # the door shows the metrics of all
    assert CONTROL_FOLDER == control.FOLDER
    named = worker_environment(world.run, tmp_path, tmp_path / "control")
    assert named[CONTROL_FOLDER] == str(tmp_path / "control")
    assert "METASTABLE_METRICS_PORT" not in named
    world.run.close()


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_the_real_one_answers_lets_go_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "metastable.mar"
    mar.build(REPOSITORY / "model_store" / "cifar10", REPOSITORY / "model-config.yaml", archive)
    run = RunFolder(tmp_path / "run")
    home = java.find(print).home
    image = decode((REPOSITORY / "samples" / "cat.png").read_bytes())

    async def main() -> None:
        async with Supervised(run, archive, home, torchserve_metrics_port=free_port()) as supervised:
            backend = supervised.backend

            async def ask(setting: str) -> Judged:
                async with await backend.admit(setting) as room:
                    question = Question(
                        f"{time.monotonic()}", image, RequestOptions(setting, 3, None, None), None
                    )
                    return await backend.ask(question, room)

            async def until(seen: Callable[[], bool]) -> None:
                async with asyncio.timeout(PATIENCE):
                    while not seen():
                        await asyncio.sleep(0.05)

            await supervised.until_ready(PATIENCE)
            judged = await ask("none")
            assert judged.body["class"] == "cat"
            assert judged.body["image"]["format"] == "PNG"

            (worker,) = backend._alive()
            asking = [asyncio.create_task(ask("accurate")) for _ in range(3)]
            await until(lambda: worker.state["out"] > 0 and worker.state["backlog"] > 0)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await until(lambda: worker.state["out"] == 0 and worker.state["backlog"] == 0)
            await until(lambda: not backend._under_way)  # TorchServe has forgotten them
            assert (await ask("none")).body["class"] == "cat"

            (pid,) = (int(path.stem) for path in backend._workers)
            for victim in (psutil.Process(pid), psutil.Process(pid).parent()):
                assert victim is not None
                asked = asyncio.create_task(ask("accurate"))
                await until(lambda: bool(backend._sent))
                victim.send_signal(signal.SIGKILL)
                with pytest.raises(Unavailable):
                    await asked
                await until(lambda: not backend.ready)
                with pytest.raises(Unavailable):
                    await backend.admit("none")
                await until(lambda: backend.ready)
                assert (await ask("none")).body["class"] == "cat"

            for name, value in {"SILENCE": 0.5, "PROOF": 5.0}.items():
                monkeypatch.setattr(torchserve_backend, name, value)
            supervised._patience, starts = 1.0, supervised.starts
            (pid,) = (int(path.stem) for path in backend._workers)
            victim = psutil.Process(pid).parent()
            assert victim is not None
            victim.suspend()  # it is there, and does nothing
            with pytest.raises(Unavailable):
                await ask("accurate")
            await until(lambda: supervised.starts > starts)
            supervised._patience = PATIENCE
            await until(lambda: backend.ready)
            assert (await ask("none")).body["class"] == "cat"

    asyncio.run(main())
    ends = [record.getMessage() for record in caplog.records if record.name == "deploy.torchserve"]
    assert ends == [
        "TorchServe ended by itself: starting it again in 1 s",
        "TorchServe made no prediction for 1 s: starting it again in 2 s",
    ], run.log_tail()
    run.close()
    children = [one for one in psutil.Process(os.getpid()).children(recursive=True) if "java" in one.name()]
    assert children == []
