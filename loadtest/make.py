"""Making attack sets against a bundle, group by group: an interrupted call goes on where it stopped."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from loadtest.sets import CLEAN, About, AttackSet, save
from metastable import datasets
from metastable.attacks.catalogue import Options, Plan, plan
from metastable.attacks.white_box import attackable, white_box
from metastable.bundle import Bundle
from metastable.errors import DataError, SettingsError
from metastable.evaluation.same import same_run
from metastable.networks.onnx_gradient import IMAGES

TOLD = ("labels", "pictures", "skipped", "test_share", "split_seed", "crops")
"""What a set keeps of how a folder of pictures became images (ImageSet.about)."""


@dataclass(frozen=True)
class Order:
    """What the images of a set depend on; kept beside an unfinished one so that two cannot mix.

    Attributes:
        attack: a name of metastable.attacks.catalogue, or `clean`.
        setting: what is attacked, by an attacker who knows all of it but its seeds.
        skip: images of the data set's order that were left out.
        batch: images that are attacked together.
        bundle, data: digests, filled in by `make`.
    """

    attack: str = CLEAN
    setting: str = "balanced"
    options: Options = field(default_factory=Options)
    skip: int = 0
    batch: int = 4
    seed: int = 0
    bundle: str = ""
    data: str = ""


def make(bundle: Bundle, test: datasets.ImageSet, order: Order, out: Path) -> AttackSet:
    """Attack every image of `test` and write the set to `out`; clean images for the attack `clean`.

    Raises DataError if `out` was begun with another order, SettingsError for an unknown setting.
    """
    if not len(test):
        raise DataError("there are no images: --n is 0, or --skip leaves out the whole split")
    images, success = datasets.to_float(test.images), torch.zeros(len(test), dtype=torch.bool)
    originals, labels = images.numpy(), test.labels.numpy()
    about = About(
        attack=order.attack,
        bundle=bundle.digest,
        seed=order.seed,
        data={"name": test.name, "split": test.split, "sha256": test.digest(), "skip": str(order.skip)}
        | {key: str(value) for key, value in test.about.items() if key in TOLD},
        classes=tuple(bundle.classes),
    )
    parts = out.with_suffix(".parts")
    if order.attack != CLEAN:
        if order.setting not in bundle.settings.names:
            raise SettingsError(f"there is no setting {order.setting!r}: choose from {bundle.settings.names}")
        made = plan(
            order.attack, white_box(attackable(bundle, images[:IMAGES]), order.setting), order.options
        )
        parts.mkdir(parents=True, exist_ok=True)
        same_run(parts / "order.json", dataclasses.replace(order, bundle=bundle.digest, data=test.digest()))
        images, success = _attacked(made, images, test.labels, order, parts)
        about = dataclasses.replace(
            about,
            setting="" if made.mode == "bare" else order.setting,
            parameters=repr(made.attack),
            gradient=made.mode,
            norm=order.options.norm,
            eps=order.options.eps,
        )
    index = np.arange(order.skip, order.skip + len(test))
    found = AttackSet(images.numpy(), originals, labels, index, success.numpy(), about)
    save(out, found)
    if parts.exists():
        shutil.rmtree(parts)
    return found


def _attacked(made: Plan, images: Tensor, labels: Tensor, order: Order, parts: Path) -> tuple[Tensor, Tensor]:
    """Attacked images [N, C, H, W] and successes [N]; groups that lie in `parts` are not redone."""
    groups = []
    for start in tqdm(range(0, len(images), order.batch), desc=f"{order.attack}, groups", mininterval=2):
        group, kept = slice(start, start + order.batch), parts / f"{start:06}.safetensors"
        if not kept.exists():
            seed = int(np.random.SeedSequence([order.seed, start]).generate_state(1)[0])
            found = made.attack(made.target, images[group], labels[group], seed=seed)
            half = kept.with_suffix(".writing")
            save_file({"images": found.images.contiguous(), "success": found.success}, half)
            half.replace(kept)
        groups.append(load_file(kept))
    return torch.cat([one["images"] for one in groups]), torch.cat([one["success"] for one in groups])
