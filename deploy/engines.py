"""What answers behind the door, and the options that only one of them has."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.run_folder import Refused

ENGINES = ("torchserve", "local")


def fill(parser: argparse.ArgumentParser) -> None:
    """`--engine`, and the options of `local` alone, which are None where they are not given."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what answers")
    add = parser.add_argument_group("with --engine local").add_argument
    add("--bundle", help="folder of what is served, or a shipped bundle's name; no archive is read")
    add("--also", action="append", metavar="[VERSION=]BUNDLE", help="another version, loaded beside it")
    add(
        "--policy",
        type=Path,
        help="file of what becomes of requests: docs/operating.md; SIGHUP reads it again",
    )
    add("--max-bytes", type=int, help="of an image (default: 16 million, whatever the archive says)")
    add("--max-pixels", type=int, help="of an image (default: 50 million)")
    add("--runner", help="what runs the networks (default: that of the archive, or auto)")
    add("--threads", type=int, help="of the runner (default: one a core)")
    add("--allow-seeds", action="store_const", const=True, help="let clients fix the chains' noise: unsafe")
    add("--keys", type=Path, help="file of name:key lines; who has none of them is not answered")
    add("--proxy", action="append", help="address of a proxy whose X-Forwarded-For is believed")
    add("--origin", action="append", help="origin whose pages browsers may let ask (CORS)")


GIVEN = (
    *("bundle", "also", "policy", "max_bytes", "max_pixels", "runner", "threads"),
    *("allow_seeds", "keys", "proxy", "origin"),
)
"""Names of `fill`'s options."""


OTHERS = ("torchserve_metrics_port", "allow_remote", "run_dir", "ready_timeout")
"""Names of options that mean something to TorchServe alone."""


def check(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refused for an option of another engine than the chosen one, or of an archive beside a bundle."""
    local = chosen.engine == "local"
    idle = OTHERS if local else GIVEN
    if local and chosen.bundle is not None:
        idle = (*idle, "archive")
    for name in idle:
        if getattr(chosen, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            where = "with --bundle" if name == "archive" else f"with --engine {chosen.engine}"
            raise Refused(f"{flag} does nothing {where}: leave it out")
