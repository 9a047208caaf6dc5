"""What a decided answer of Langevin chains costs over HTTP, beside the published loop, paired in one run.

    published: H chains of K steps for every image, each step one `autograd.grad` and one draw of noise (the
               loop of Hill, Mitchell and Zhu 2021), then the classifier; nothing else runs in its process.
    served:    the server with the engine in its process, images at once, chains in shared batches, stopping
               when the label is settled.

The loop's steps are all alike, so some of them are timed and multiplied.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import server, steps
from benchmarks.asking import Asker
from metastable import bundle as bundles
from metastable.dynamics.langevin import Langevin
from metastable.errors import DataError, MetastableError
from metastable.evaluation import cli

AT_ONCE = 4
"""Images at once: so many are let in whatever they cost (docs/performance.md)."""
STEPS = 3
"""Of the published loop in a round."""


def measure(
    folder: Path, images: Sequence[bytes], work: Path, setting: str, *, rounds: int, chains: int
) -> dict[str, Any]:
    """Seconds of an answer either way, and their ratio of each round.

    Args:
        images: asked for at once in every round.
        chains: of the published loop, H.

    Raises DataError for a setting that is not of Langevin dynamics, and MetastableError where the server
    refuses one of the images.
    """
    loaded = bundles.load(folder)
    dynamics = loaded.settings[setting].dynamics
    if not isinstance(dynamics, Langevin):
        raise DataError(f"{setting} is not of Langevin dynamics: name one that is")
    network = copy.deepcopy(loaded.networks[dynamics.network])
    x = torch.rand(chains, *loaded.shape, generator=torch.Generator().manual_seed(0))
    with server.serving(folder, work, {}, engine="local") as url:
        return asyncio.run(
            _measured(
                url, images, setting, rounds, lambda: _loop(network, loaded.classifier, x, dynamics.steps)
            )
        ) | {"K": dynamics.steps, "H_published": chains}


async def _measured(
    url: str, images: Sequence[bytes], setting: str, rounds: int, loop: Any
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    async with contextlib.AsyncExitStack() as stack:
        askers = [
            Asker(url, image, {"X-Metastable-Setting": setting}, local=f"127.0.0.{i + 2}", patience=600)
            for i, image in enumerate(images)
        ]
        for one in askers:
            stack.push_async_callback(one.close)
        for _ in tqdm(range(rounds), desc="rounds"):
            begun = time.perf_counter()
            answers = await asyncio.gather(*(one() for one in askers))
            served = (time.perf_counter() - begun) / len(answers)
            if wrong := [one.status for one in answers if not one.good]:
                raise MetastableError(
                    f"the server refused: {', '.join(wrong)}; what it refuses costs it nothing"
                )
            published = await asyncio.to_thread(loop)
            rows.append(
                {
                    "served_s": round(served, 6),
                    "published_s": round(published, 6),
                    "ratio": round(published / served, 3),
                }
            )
    return {
        "setting": setting,
        "at_once": len(images),
        "served_s": statistics.median(row["served_s"] for row in rows),
        "published_s": statistics.median(row["published_s"] for row in rows),
        "ratio": statistics.median(row["ratio"] for row in rows),
        "rows": rows,
    }


def _loop(network: nn.Module, classifier: nn.Module, x: Tensor, count: int) -> float:
    """Seconds of one image's answer by the published loop of `count` steps."""
    begun = time.perf_counter()
    for _ in range(STEPS):
        x = steps.published(network, x)
    one = (time.perf_counter() - begun) / STEPS
    begun = time.perf_counter()
    with torch.inference_mode():
        classifier(x)
    return count * one + time.perf_counter() - begun


def fill(one: argparse.ArgumentParser) -> None:
    """Make the parser that of this benchmark."""
    one.add_argument("--setting", default="langevin_500", help="of the bundle, with dynamics langevin")
    one.add_argument("--images", type=Path, default=Path("samples"), help="folder of the PNGs that are asked")
    one.add_argument("--rounds", type=cli.from_one, default=3, help="pairs of both ways")
    one.add_argument("--chains", type=cli.from_one, default=150, help="of the published loop (the paper's)")
    one.add_argument("--work", type=Path, default=Path("runs/published"), help="folder of the server")
    one.set_defaults(bundle=Path("model_store/cifar10-langevin"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    images = [path.read_bytes() for path in sorted(args.images.glob("*.png"))[:AT_ONCE]]
    if not images:
        raise DataError(f"{args.images} holds no PNGs")
    return measure(args.bundle, images, args.work, args.setting, rounds=args.rounds, chains=args.chains)
