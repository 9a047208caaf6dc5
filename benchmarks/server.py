"""A server of its own for a benchmark, on free ports, with chosen lines of model-config.yaml changed."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from export import mar
from metastable.errors import MetastableError

ROOT = Path(__file__).resolve().parent.parent


def changed(text: str, changes: Mapping[str, str]) -> str:
    """A model-config.yaml with the values of some keys replaced; comments on those lines are lost.

    Raises MetastableError for a key that is not there.
    """
    lines = text.splitlines()
    for key, value in changes.items():
        at = [i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        if len(at) != 1:
            raise MetastableError(f"model-config.yaml has no single line with the key {key}")
        indent = lines[at[0]][: len(lines[at[0]]) - len(lines[at[0]].lstrip())]
        lines[at[0]] = f"{indent}{key}: {value}"
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def serving(
    bundle: Path,
    folder: Path,
    changes: Mapping[str, str],
    engine: str = "torchserve",
    more: Sequence[str] = (),
) -> Iterator[str]:
    """Start a server in `folder` and give the address of its predictions; stop it at the end.

    `more`: options of its command.

    Raises MetastableError with the launcher's output if it does not get ready.
    """
    with started(bundle, folder, changes, engine, more) as (url, _):
        yield url


@contextlib.contextmanager
def started(
    bundle: Path, folder: Path, changes: Mapping[str, str], engine: str, more: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same, with its launcher."""
    folder.mkdir(parents=True, exist_ok=True)
    config, archive = folder / "model-config.yaml", folder / "metastable.mar"
    config.write_text(changed((ROOT / "model-config.yaml").read_text(), changes))
    mar.build(bundle, config, archive)
    with contextlib.ExitStack() as sockets:
        ports = []
        for _ in range(3):
            one = sockets.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(str(one.getsockname()[1]))
    command = [sys.executable, "-m", "deploy.serve", "--archive", str(archive), "--engine", engine]
    command += ["--port", ports[0], "--metrics-port", ports[1], "--log-file", str(folder / "door.log")]
    if engine == "torchserve":
        command += ["--run-dir", str(folder / "run"), "--torchserve-metrics-port", ports[2]]
    launcher = subprocess.Popen(
        [*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert launcher.stdout is not None
    try:
        output = []
        for line in launcher.stdout:
            output.append(line)
            if line.strip().startswith("stop:"):
                break
        else:
            raise MetastableError("the server did not start:\n" + "".join(output))
        yield f"http://127.0.0.1:{ports[0]}/classify", launcher
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate()
