"""Start the server on this machine, wait until it predicts, stop it cleanly.

    metastable serve                  # until Ctrl-C
    metastable serve --check          # start, predict once, stop: for continuous integration
    metastable serve --engine local   # without TorchServe (deploy.local)
    metastable serve --engine ray     # on a cluster of Ray (deploy.clustered)

Exit status: 0 after a stop that was asked for, 1 if the server failed, 2 if it cannot be started
as asked; 128 and the number of a signal that came before there was a server.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib.util
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from deploy import engines, java
from deploy.run_folder import Refused, RunFolder
from metastable import console
from metastable.serving import logs
from metastable.serving.door.stopping import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPOSITORY = Path(__file__).resolve().parent.parent


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    add = parser.add_argument
    add("--port", type=int, default=8080, help="port of the predictions")
    add("--metrics-port", type=int, default=8083, help="port of the metrics")
    add("--host", default="127.0.0.1", help="address to listen on; any but loopback needs --keys")
    add("--archive", type=Path, default=Path("model_store/metastable.mar"), help="what is served")
    add("--sample", type=Path, help="image of --check, and of the line that says how to ask")
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


def check_ports(wanted: Sequence[tuple[str, str, int]]) -> None:
    """Refused if one of (flag, host, port) is taken, or two of them are the same."""
    seen: dict[int, str] = {}
    for flag, host, port in wanted:
        if not 0 < port < 65536:
            raise Refused(f"{flag} must be a port from 1 to 65535, not {port}")
        if port in seen:
            raise Refused(f"{seen[port]} and {flag} are both {port}: give each its own port")
        seen[port] = flag
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            # As servers do: a connection that has just ended must not count as taken.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise Refused(f"port {port} on {host} {why}: choose another with {flag}") from None


def check_ray(chosen: argparse.Namespace) -> None:
    """Refused where Ray is not installed, or a replica's share of a machine is none."""
    if importlib.util.find_spec("ray") is None:
        raise Refused("--engine ray needs Ray, which `make serve-ray` installs (requirements-ray.txt)")
    if not (0 < chosen.replica_cpus < math.inf and 0 <= chosen.replica_gpus < math.inf):
        raise Refused("--replica-cpus must be above 0, and --replica-gpus 0 or more")


def serve(chosen: argparse.Namespace) -> int:
    """The whole life of one server, after its command line was read; the exit status."""
    engines.check(chosen, chosen.parser)
    sample = REPOSITORY / "samples" / "cat.png" if chosen.sample is None else chosen.sample
    if not sample.is_file():
        raise Refused(f"{sample} is missing: name an image with --sample")
    ports = [
        ("--port", chosen.host, chosen.port),
        ("--metrics-port", chosen.metrics_host, chosen.metrics_port),
    ]
    stop = Stop()
    ending = _Ending(stop)
    with ending.handles():
        return _serve(chosen, sample, ports, stop, ending)


def _serve(
    chosen: argparse.Namespace,
    sample: Path,
    ports: Sequence[tuple[str, str, int]],
    stop: Stop,
    ending: _Ending,
) -> int:
    # With PyTorch, which takes seconds to import.
    if chosen.engine == "ray":
        check_ports(ports)
        check_ray(chosen)
        if chosen.bundle is None:
            chosen.archive = check_archive(chosen.archive)
        with ending.imports():
            from deploy import clustered

        return clustered.serve(chosen, sample, stop)
    if chosen.engine == "local":
        check_ports(ports)
        if chosen.bundle is None:
            chosen.archive = check_archive(chosen.archive)
        with ending.imports():
            from deploy import local

        return local.serve(chosen, sample, stop)
    chosen.archive = check_archive(chosen.archive)
    check_ports([*ports, ("--torchserve-metrics-port", "127.0.0.1", chosen.torchserve_metrics_port)])
    with contextlib.closing(RunFolder(chosen.run_dir)) as run:
        # prometheus_client looks for this when it is imported: door and workers count in one folder.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(run.metrics)
        ending.run = run
        with ending.imports():
            from deploy import behind

        return behind.serve(chosen, sample, stop, run, java.find(functools.partial(print, flush=True)))


class _Ending:
    """Before there is a server, a stop ends what runs at once, and the programs that it waits for.

    Attributes:
        importing: an exception would come up in the middle of a compiled package, which may swallow it or
            abort; so the process ends there and then, and `run`, if there is one, is cleared away before.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.importing = False
        self.run: RunFolder | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._stop.ask(grace=False)
        if self.importing:
            if self.run is not None:
                self.run.close()
            if number == signal.SIGINT:
                os.write(2, b"\nstopped\n")
            os._exit(128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    @contextlib.contextmanager
    def handles(self) -> Iterator[None]:
        before = {number: signal.signal(number, self) for number in SIGNALS}
        # The log's level is changed by them, once there is a log: until then they would end the process.
        before |= {number: signal.signal(number, _not_yet) for number in logs.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        self.importing = True
        try:
            yield
        finally:
            self.importing = False


def _not_yet(number: int, frame: FrameType | None) -> None:
    """A handler and no SIG_IGN, which programs that are started would inherit."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = console.Parser(prog="python -m deploy.serve")
    fill(parser)
    return console.run(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
