"""What answers behind the door, and the options that only one of them has."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.run_folder import Refused
from metastable.serving import logs

ENGINES = ("torchserve", "local", "ray")


def fill(parser: argparse.ArgumentParser) -> None:
    """`--engine`, the options of the door, and those of one engine alone."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what answers")
    add = parser.add_argument_group("of the door").add_argument
    add("--max-bytes", type=int, help="of an image (default: 16 million)")
    add("--max-pixels", type=int, help="of an image (default: 50 million)")
    add("--keys", type=Path, help="file of name:key lines; who has none of them is not answered")
    add("--log-format", choices=logs.FORMATS, default="text", help="of the log: for people or machines")
    add("--log-level", choices=logs.LEVELS, default="info", help="SIGUSR1 and SIGUSR2 change it later")
    add("--log-file", type=Path, help="where the log is appended (default: stderr)")
    add(
        "--metrics-host",
        default="127.0.0.1",
        help="address of the metrics, which ask nobody for a key (default: %(default)s)",
    )
    add("--proxy", action="append", help="address of a proxy whose X-Forwarded-For is believed")
    add("--origin", action="append", help="origin whose pages browsers may let ask (CORS)")
    add(
        "--policy",
        type=Path,
        help="file of what becomes of requests: docs/operating.md; SIGHUP reads it again",
    )
    add = parser.add_argument_group("with --engine local or ray").add_argument
    add("--bundle", help="folder of what is served, or a shipped bundle's name; no archive is read")
    add("--runner", help="what runs the networks (default: that of the archive, or auto)")
    add("--threads", type=int, help="of the runner (default: one a core)")
    add("--allow-seeds", action="store_const", const=True, help="let clients fix the chains' noise: unsafe")
    add = parser.add_argument_group("with --engine local").add_argument
    add("--also", action="append", metavar="[VERSION=]BUNDLE", help="another version, loaded beside it")
    add = parser.add_argument_group("with --engine ray").add_argument
    add("--ray", metavar="ADDRESS", help="of a cluster that is there (default: one of this machine alone)")
    add(
        "--replicas",
        type=counts,
        default=(1, 1),
        metavar="N or LEAST:MOST",
        help="how many; of two numbers the work that waits decides (default: 1)",
    )
    add("--replica-cpus", type=float, default=1.0, help="cores that a replica takes (default: 1)")
    add("--replica-gpus", type=float, default=0.0, help="GPUs, or a share of one, that it takes (default: 0)")
    add = parser.add_argument_group("with --engine torchserve").add_argument
    add("--torchserve-metrics-port", type=int, default=8082, help="port of TorchServe's own metrics")
    add("--run-dir", type=Path, default=Path(".run"), help="folder of logs and temporary files")
    add("--ready-timeout", type=float, default=180.0, help="seconds until the first prediction")


_BUNDLE = ("bundle", "runner", "threads", "allow_seeds")
OF = {
    "local": ("also", *_BUNDLE),
    "ray": ("ray", "replicas", "replica_cpus", "replica_gpus", *_BUNDLE),
    "torchserve": ("torchserve_metrics_port", "run_dir", "ready_timeout"),
}
"""Names of the options that mean something to an engine, and not to all."""


def check(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refused for an option of another engine than the chosen one, or of an archive beside a bundle."""
    known = {name for names in OF.values() for name in names}
    idle = sorted(known - set(OF[chosen.engine]))
    if chosen.bundle is not None:
        idle.append("archive")
    for name in idle:
        if getattr(chosen, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            where = "with --bundle" if name == "archive" else f"with --engine {chosen.engine}"
            raise Refused(f"{flag} does nothing {where}: leave it out")


def counts(text: str) -> tuple[int, int]:
    """The least and the most replicas of "2" or "1:8"; ValueError for what is neither."""
    least, colon, most = text.partition(":")
    found = int(least), int(most if colon else least)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"replicas must be a number from 1, or two with a colon between, not {text!r}")
    return found
