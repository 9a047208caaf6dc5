"""A server's log and traces, from its command line and its environment to a file and a collector."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import observing
from metastable.errors import SettingsError
from tests.deploy.test_local import refused, said, started
from tests.launched import PATIENCE, REPOSITORY
from tests.serving.collector import collecting
from tests.serving.door.conftest import png
from tests.serving.door.written import MARK


def chosen(file: Path | None, level: str = "info") -> argparse.Namespace:
    return argparse.Namespace(log_format="json", log_level=level, log_file=file)


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = ["--engine", "local", "--bundle", "cifar10"]
    assert "cannot be written" in refused(capsys, *local, "--log-file", str(tmp_path / "none" / "log"))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf only"),
        ({}, "pip install 'metastable[tracing]'"),
    ],
)
def test_what_cannot_be_traced_is_said_and_stops_nothing(
    variables: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)  # as if it were not installed
    with observing.opened(chosen(tmp_path / "log")):
        pass
    [line] = (tmp_path / "log").read_text().splitlines()
    assert said in json.loads(line)["event"]
    assert json.loads(line)["level"] == "warning"


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError), observing.opened(chosen(tmp_path)):
        pass


@pytest.mark.slow
def test_a_server_without_a_stderr_writes_to_nothing_in_its_place(tmp_path: Path) -> None:
    """The next file that is opened gets its number, and must not get the log."""
    code = (
        "import logging, argparse, sys\n"
        "from deploy import observing\n"
        f"file = open({str(tmp_path / 'other')!r}, 'w')\n"
        "assert sys.stderr is None and file.fileno() == 2\n"
        "chosen = argparse.Namespace(log_format='json', log_level='info', log_file=None)\n"
        "with observing.opened(chosen):\n"
        "    logging.getLogger('metastable').info('to nobody')\n"
    )
    shell = 'exec "$0" -c "$1" 2>&-'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = ["bash", "-c", shell, sys.executable, code]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert (tmp_path / "other").read_text() == ""


def line_where(path: Path, **wanted: object) -> dict[str, Any]:
    """The first line of the log in which these fields are so, once it is there."""
    ends = time.monotonic() + PATIENCE
    while True:
        whole = path.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        for one in found:
            if wanted.items() <= one.items():
                return one
        assert time.monotonic() < ends, found
        time.sleep(0.02)


@pytest.mark.server
def test_a_server_logs_and_traces_as_it_is_told(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log file"
    options = ["--bundle", str(tiny_folder), "--runner", "torch", "--threads", "1"]
    options += ["--log-format", "json", "--log-level", "warning", "--log-file", str(log)]
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        with started(*options) as (process, url):

            def ask() -> None:
                answer = httpx.post(
                    f"{url}/classify?top_k=2",
                    content=png(),
                    headers={"User-Agent": MARK},
                    trust_env=False,
                    timeout=PATIENCE,
                )
                assert answer.status_code == 200

            said(process)
            ask()
            httpx.get(f"{url}/{MARK}?{MARK}", trust_env=False)
            process.send_signal(signal.SIGUSR1)
            line_where(log, event="the level of the log is now info")
            ask()
            # A request's line is written after its answer, so those of the ones before may be there too.
            line = line_where(log, event="request", route="/classify")
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=PATIENCE)
            assert (process.returncode, rest) == (0, "stopping\nstopped\n")
    assert line["status"] == 200
    assert collector.paths == {"/v1/traces"}  # nothing of FastAPI's, which would hold paths and queries
    roots = [span for span in collector.spans if not span.parent_span_id]
    assert [span.name for span in roots] == ["POST /classify", "GET", "POST /classify"]
    assert line["trace_id"] in {span.trace_id.hex() for span in roots if span.name == "POST /classify"}
    assert MARK not in log.read_text() + "".join(map(str, collector.spans))
