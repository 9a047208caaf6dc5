"""Start the server on this machine, wait until it predicts, stop it cleanly.

    metastable serve                  # until Ctrl-C
    metastable serve --check          # start, predict once, stop: for continuous integration
    metastable serve --engine local   # without TorchServe (deploy.local)

Exit status: 0 after a stop that was asked for, 1 if the server failed, 2 if it cannot be started
as asked.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from deploy import engines, java
from deploy.process import ServerGroup
from deploy.readiness import Failed, Prober
from deploy.run_folder import Addresses, Refused, RunFolder
from deploy.starting import FAILED_LOADS, start
from metastable import console

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRESS_SECONDS = 5.0


class StopRequests:
    """Counts SIGINT, SIGTERM and SIGHUP: the first asks for a stop, the second for one at once."""

    def __init__(self) -> None:
        self.count = 0
        self._event = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def wait(self, seconds: float) -> bool:
        """Whether a stop was asked for, at the latest after `seconds`."""
        return self._event.wait(seconds)

    def at_once(self) -> bool:
        return self.count >= 2

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._event.set()


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    add = parser.add_argument
    add("--port", type=int, default=8080, help="port of the predictions")
    add("--metrics-port", type=int, default=8083, help="port of Metastable's metrics")
    add("--torchserve-metrics-port", type=int, default=8082, help="port of TorchServe's own metrics")
    add("--host", default="127.0.0.1", help="IPv4 address for predictions")
    add("--allow-remote", action="store_true", help="let --host be an address that others can reach")
    add("--run-dir", type=Path, default=Path(".run"), help="folder of logs and temporary files")
    add("--archive", type=Path, default=Path("model_store/metastable.mar"), help="what is served")
    add("--sample", type=Path, help="image for the first prediction (default: a generated one)")
    add("--ready-timeout", type=float, default=180.0, help="seconds until the first prediction")
    add("--check", action="store_true", help="start, predict once, stop")
    engines.fill(parser)
    parser.set_defaults(run=serve, tells=True, parser=parser)


def check_archive(archive: Path) -> Path:
    """The archive's absolute path; Refused if it is missing or has a name TorchServe would misread."""
    if not archive.is_file():
        raise Refused(f"{archive} is missing: run `make archive`, or name another with --archive")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+\.mar", archive.name):
        raise Refused(f"{archive.name} cannot be served: use letters, digits, _ and -, and .mar at the end")
    return archive.resolve()


def check_host(host: str, allow_remote: bool) -> str:
    """The IPv4 address to listen on; Refused if others can reach it and that was not allowed."""
    try:
        address = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise Refused(f"--host must be an IPv4 address such as 127.0.0.1, not {host!r}") from None
    if not address.is_loopback and not allow_remote:
        raise Refused(
            f"--host {host} lets other machines in, and nothing here asks who they are: put a proxy "
            "that does in front of 127.0.0.1, or add --allow-remote"
        )
    return str(address)


def check_ports(wanted: Sequence[tuple[str, str, int]]) -> None:
    """Refused if one of (flag, host, port) is taken, or two of them are the same."""
    seen: dict[int, str] = {}
    for flag, host, port in wanted:
        if not 0 < port < 65536:
            raise Refused(f"{flag} must be a port from 1 to 65535, not {port}")
        if port in seen:
            raise Refused(f"{seen[port]} and {flag} are both {port}: give each its own port")
        seen[port] = flag
        with socket.socket() as trial:
            # As servers do: a connection that has just ended must not count as taken.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise Refused(f"port {port} on {host} {why}: choose another with {flag}") from None


def wait_until_ready(
    group: ServerGroup, run: RunFolder, prober: Prober, timeout: float, stop: StopRequests
) -> bool:
    """True when a prediction came back, False when a stop was asked for; Failed if neither will be."""
    begun = time.monotonic()
    progress = begun + PROGRESS_SECONDS
    while not stop.wait(0.1):
        if prober.answer is not None:
            return True
        waited = time.monotonic() - begun
        if not group.running():
            raise Failed("the server ended by itself while starting")
        if prober.refusal:
            raise Failed(f"the server is up but refuses the sample image ({prober.refusal}): see --sample")
        if run.failed_loads() >= FAILED_LOADS:
            raise Failed(f"the model cannot be loaded: its worker died {run.failed_loads()} times")
        if waited > timeout:
            raise Failed(f"no prediction within {timeout:g} s ({prober.state()}): see --ready-timeout")
        if begun + waited > progress:
            say(f"waiting for the first prediction: {waited:.0f} s ({prober.state()})")
            progress += PROGRESS_SECONDS
    return False


def watch(group: ServerGroup, stop: StopRequests) -> None:
    """Return when a stop is asked for; Failed if the server ends before that."""
    while not stop.wait(0.5):
        if not group.running():
            raise Failed("the server ended by itself")


def announce(url: str, sample: Path, run: RunFolder, metrics_port: int, seconds: float) -> None:
    say(f"ready after {seconds:.1f} s: {url}")
    # Without a content type of its own, curl would declare the image a form and the body would be lost.
    header = "-H 'Content-Type: application/octet-stream'"
    say(f"  try it:   curl -s {header} --data-binary @{shlex.quote(str(sample))} {url}")
    if run.key_file.exists():
        say(f"            with -H 'Authorization: Bearer KEY': the inference key in {run.key_file}")
    say(f"  metrics:  http://127.0.0.1:{metrics_port}/metrics")
    say(f"  logs:     {run.logs}")
    say(f"  stop:     Ctrl-C here, or kill {os.getpid()}")


def serve(chosen: argparse.Namespace) -> int:
    """The whole life of one server, after its command line was read; the exit status."""
    engines.check(chosen, chosen.parser)
    metrics_host = chosen.metrics_host or "127.0.0.1"
    ports = [("--port", chosen.host, chosen.port), ("--metrics-port", metrics_host, chosen.metrics_port)]
    if chosen.engine == "local":
        if chosen.bundle is None:
            chosen.archive = check_archive(chosen.archive)
        check_ports(ports)
        sample = REPOSITORY / "samples" / "cat.png" if chosen.sample is None else chosen.sample
        if not sample.is_file():
            raise Refused(f"{sample} is missing: name an image with --sample")
        from deploy import local  # with PyTorch, which TorchServe's launcher does without

        return local.serve(chosen, sample)
    chosen.archive = check_archive(chosen.archive)
    chosen.host = check_host(chosen.host, chosen.allow_remote)
    check_ports([*ports, ("--torchserve-metrics-port", "127.0.0.1", chosen.torchserve_metrics_port)])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_now)
    found = java.find(say)
    stop = StopRequests()
    run = RunFolder(chosen.run_dir)
    try:
        sample = run.sample(chosen.sample)
        addresses = Addresses(f"http://{chosen.host}:{chosen.port}", chosen.torchserve_metrics_port)
        run.write_config(REPOSITORY / "config.properties", chosen.archive, addresses)
        if stop.wait(0):
            say("stopped before the server was started")
            return 1 if chosen.check else 0
        say(f"starting TorchServe with Java {found.version} ({found.source})")
        return start_and_stop(chosen, run, sample, found.home, stop)
    finally:
        run.close()


def _end_now(number: int, frame: FrameType | None) -> None:
    """Before there is a server a stop ends what runs at once, and the programs that it waits for."""
    raise SystemExit(128 + number)


def start_and_stop(
    chosen: argparse.Namespace, run: RunFolder, sample: Path, java_home: Path, stop: StopRequests
) -> int:
    """Start, wait, serve, stop; the exit status."""
    near = "127.0.0.1" if chosen.host == "0.0.0.0" else chosen.host
    url = f"http://{near}:{chosen.port}/predictions/metastable"
    begun = time.monotonic()
    group = start(run, chosen.archive, java_home, chosen.metrics_port)
    status = 0
    try:
        prober = Prober(url, sample.read_bytes(), run.key_file)
        if wait_until_ready(group, run, prober, chosen.ready_timeout, stop):
            announce(url, sample, run, chosen.metrics_port, time.monotonic() - begun)
            if chosen.check:
                say(f"check: predicted {prober.predict()}")
            else:
                watch(group, stop)
        elif chosen.check:
            status = 1  # stopped before anything was checked
    except Failed as failure:
        complain(f"{failure}\n{run.log_tail()}")
        status = 1
    finally:
        left = end(group, stop)
    return 1 if left else status


def end(group: ServerGroup, stop: StopRequests) -> list[int]:
    """Stop the group and say how that went; what is left of it."""
    say("stopping")
    begun = time.monotonic()
    left = group.stop(stop.at_once)
    if left:
        complain(f"these processes could not be killed: {', '.join(map(str, left))}")
    else:
        say(f"stopped after {time.monotonic() - begun:.1f} s, nothing is left running")
    return left


def say(text: str) -> None:
    print(text, flush=True)


def complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = console.Parser(prog="python -m deploy.serve")
    fill(parser)
    return console.run(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
