"""Ask about images: a running server, or without one the same bundle in this process.

    metastable ask samples/cat.png
    metastable ask samples/*.png --url http://127.0.0.1:9000 --setting fast
    metastable ask samples/cat.png --in-process --bundle model_store/cifar10

Without --url a server at http://127.0.0.1:8080 is asked if one listens there.  What was used is said on
stderr and, as `answered_by`, in the line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from metastable import console, reading
from metastable.cli import client

PATIENCE = 120.0  # seconds for one image


MOST_BYTES = 100_000_000
"""Of a file that is sent: what is too large for a server, it says itself."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG, WebP or .npy files")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help=f"of the server (default: {client.HERE}, or this process)")
    where.add_argument("--in-process", action="store_true", help="ask no server")
    parser.add_argument("--setting", help="of the answer (default: that of the server or bundle)")
    parser.add_argument("--top-k", type=int, default=3, help="classes that are listed")
    parser.add_argument("--deadline-ms", type=int, help="of a server: give up after so many milliseconds")
    parser.add_argument("--key-file", type=Path, help="of a server that asks for a key: .run/key_file.json")
    parser.add_argument(
        "--bundle",
        default="model_store/cifar10",
        help="of this process: folder of the bundle, or a shipped one's name",
    )
    console.idle(parser, "--key-file", beside="--in-process", why="which asks no server")
    console.idle(parser, "--bundle", beside="--url", why="whose server has a bundle of its own")
    console.add_out(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Ask about every image, and say who answered."""
    if args.top_k < 1:
        raise ValueError("--top-k must be 1 or more")
    bodies = [reading.read(path, MOST_BYTES) for path in args.images]
    found = None if args.in_process else _of_server(args, bodies)
    by, verdicts = found or ("this process", _of_this_process(args))
    for path, verdict in zip(args.images, verdicts, strict=True):
        print(client.line(path, verdict))
    images = [str(path) for path in args.images]
    return {"command": "ask", "answered_by": by, "images": images, "verdicts": verdicts}


def _of_server(args: argparse.Namespace, bodies: list[bytes]) -> tuple[str, list[dict[str, Any]]] | None:
    """Its address and verdicts; None where nobody listens and no server was named."""
    url = args.url or client.HERE
    given = {"setting": args.setting, "top_k": args.top_k, "deadline_ms": args.deadline_ms}
    options = {name: str(value) for name, value in given.items() if value is not None}
    key = client.key_in(args.key_file) if args.key_file else None
    try:
        with httpx.Client(timeout=PATIENCE, trust_env=False) as http:
            verdicts = [client.ask(http, url, body, options, key) for body in tqdm(bodies, "images", delay=2)]
    except client.Absent:
        if args.url:
            raise
        return None
    print(f"asked the server at {url}", file=sys.stderr)
    return f"the server at {url}", verdicts


def _of_this_process(args: argparse.Namespace) -> list[dict[str, Any]]:
    why = "" if args.in_process else f", because no server listens at {client.HERE}"
    print(f"answering in this process, with {args.bundle}{why}", file=sys.stderr, flush=True)
    if args.deadline_ms is not None:
        raise ValueError("--deadline-ms is for a server: leave it out")
    from metastable.bundle import shipped  # with PyTorch, which a server's client does without
    from metastable.cli import local

    loaded = local.load(shipped.path(args.bundle), args.setting)
    return [one.verdict for one in local.answer(loaded, local.read(args.images, loaded), args.top_k)]
