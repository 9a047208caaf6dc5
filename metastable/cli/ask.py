"""Ask about images: a running server, or without one the same bundle in this process.

    metastable ask samples/cat.png
    metastable ask samples/*.png --url http://127.0.0.1:9000 --setting fast
    metastable ask photos                      # every picture in a folder and below
    metastable ask samples/cat.png --in-process --bundle model_store/cifar10

Without --url a server at http://127.0.0.1:8080 is asked if one listens there.  What was used is said on
stderr and, as `answered_by`, in the line of JSON.  A picture of a folder that has no answer is named, and the
exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metastable import console
from metastable.cli import telling
from metastable.client import Client, ServerError, pictures
from metastable.client.address import HERE
from metastable.client.failure import REFUSED
from metastable.client.images import Image, body_of
from metastable.client.options import Options
from metastable.client.progress import counted
from metastable.errors import MetastableError, RequestError

Verdicts = list[dict[str, Any] | str]
"""One an image, in order; in place of one that a picture of a folder did not get, why."""


@dataclass(frozen=True)
class Asked:
    """Images to ask about; `folder` is whether folders were among what was named."""

    paths: list[Path]
    folder: bool


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument(
        "images", nargs="+", type=Path, help="PNG, JPEG, WebP or .npy files, or folders of them"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help=f"of the server (default: {HERE}, or this process)")
    where.add_argument("--in-process", action="store_true", help="ask no server")
    parser.add_argument("--setting", help="of the answer (default: that of the server or bundle)")
    parser.add_argument("--top-k", type=int, default=3, help="classes that are listed")
    parser.add_argument("--deadline-ms", type=int, help="of a server: give up after so many milliseconds")
    parser.add_argument("--key-file", type=Path, help="file with the key, for a server that asks for one")
    parser.add_argument(
        "--bundle",
        default="model_store/cifar10",
        help="of this process: folder of the bundle, or a shipped one's name",
    )
    console.idle(parser, "--key-file", beside="--in-process", why="which asks no server")
    console.idle(parser, "--bundle", beside="--url", why="whose server has a bundle of its own")
    console.add_out(parser)
    parser.set_defaults(run=run, status=lambda result: int(bool(result["failed"])))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Ask about every image, and say who answered."""
    if args.top_k < 1:
        raise ValueError("--top-k must be 1 or more")
    asked = Asked(
        [path for one in args.images for path in (pictures(one) if one.is_dir() else [one])],
        any(one.is_dir() for one in args.images),
    )
    # Files that were named must all be there; those of a folder are read when their turn comes.
    images: list[Image] = [path if asked.folder else body_of(path) for path in asked.paths]
    found = None if args.in_process else _of_server(args, asked, images)
    by, verdicts = found or ("this process", _of_this_process(args, asked))
    failed = {}
    for path, verdict in zip(asked.paths, verdicts, strict=True):
        if isinstance(verdict, str):
            failed[str(path)] = verdict
            print(f"{path}: no answer: {verdict}", file=sys.stderr)
        else:
            print(telling.line(path, verdict))
    answered = [None if isinstance(verdict, str) else verdict for verdict in verdicts]
    names = [str(path) for path in asked.paths]
    return {"command": "ask", "answered_by": by, "images": names, "verdicts": answered, "failed": failed}


def _of_server(args: argparse.Namespace, asked: Asked, images: list[Image]) -> tuple[str, Verdicts] | None:
    """Its address and verdicts; None where nobody listens and no server was named."""
    url = args.url or HERE
    deadline = None if args.deadline_ms is None else args.deadline_ms / 1000
    options: Options = {"setting": args.setting, "top_k": args.top_k, "deadline": deadline}
    key = key_in(args.key_file) if args.key_file else None
    with Client(url, key) as client:
        try:
            client.live()  # that anything answers is enough: TorchServe alone does not know the path
        except ServerError as error:
            if error.code == REFUSED and not args.url:
                return None
            raise
        outcomes = client.classify_all(images, **options)
    failures = [one for one in outcomes if isinstance(one, ServerError)]
    if failures and (not asked.folder or len(failures) == len(outcomes)):
        raise failures[0]
    print(f"asked the server at {url}", file=sys.stderr)
    return f"the server at {url}", [
        str(one).removeprefix(f"{path}: ") if isinstance(one, ServerError) else one.raw
        for path, one in zip(asked.paths, outcomes, strict=True)
    ]


def key_in(file: Path) -> str:
    """The key of a file with one line, KEY or name:KEY; MetastableError if it is no such file."""
    try:
        [line] = file.read_text(encoding="ascii").splitlines()
    except ValueError:
        raise MetastableError(f"{file} must hold one line, the key or name:key") from None
    return line.rpartition(":")[2].strip()


def _of_this_process(args: argparse.Namespace, asked: Asked) -> Verdicts:
    why = "" if args.in_process else f", because no server listens at {HERE}"
    print(f"answering in this process, with {args.bundle}{why}", file=sys.stderr, flush=True)
    if args.deadline_ms is not None:
        raise ValueError("--deadline-ms is for a server: leave it out")
    from metastable.bundle import shipped  # with PyTorch, which a server's client does without
    from metastable.cli import local
    from metastable.images import DecodedImage

    loaded = local.load(shipped.path(args.bundle), args.setting)
    if not asked.folder:
        return [one.verdict for one in local.answer(loaded, local.read(asked.paths, loaded), args.top_k)]
    failed: dict[int, str] = {}

    def readable() -> Iterator[DecodedImage]:
        with counted("bar", len(asked.paths)) as tick:
            for place, path in enumerate(asked.paths):
                try:
                    [image] = local.read([path], loaded)
                    yield image
                except RequestError as error:
                    failed[place] = str(error).removeprefix(f"{path}: ")
                except OSError as error:
                    failed[place] = error.strerror or str(error)
                tick()

    answers = iter([one.verdict for one in local.answers(loaded, readable(), args.top_k)])
    if len(failed) == len(asked.paths):
        raise MetastableError(f"{asked.paths[0]}: {failed[0]}")
    return [failed.get(place) or next(answers) for place in range(len(asked.paths))]
