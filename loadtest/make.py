"""Making attack sets against a bundle, group by group: an interrupted call goes on where it stopped."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

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
from metastable.evaluation.pool import Here, Pool
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


@dataclass(frozen=True, eq=False)
class Attacking:
    """Attacks the groups of an order, each named by the place of its first image.

    Gives images [n, C, H, W] and successes [n].

    Args:
        test: images and labels; a group is the next `order.batch` of them.
    """

    bundle: Bundle
    test: datasets.ImageSet
    order: Order

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of: the plan is made again where it goes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def plan(self) -> Plan:
        """The attack on its setting; raises what `attackable` raises."""
        some = datasets.to_float(self.test.images[:IMAGES])
        return plan(
            self.order.attack,
            white_box(attackable(self.bundle, some), self.order.setting),
            self.order.options,
        )

    def __call__(self, start: int) -> tuple[Tensor, Tensor]:
        group, made = slice(start, start + self.order.batch), self.plan
        seed = int(np.random.SeedSequence([self.order.seed, start]).generate_state(1)[0])
        images = datasets.to_float(self.test.images[group])
        found = made.attack(made.target, images, self.test.labels[group], seed=seed)
        return found.images.contiguous(), found.success


def make(
    bundle: Bundle, test: datasets.ImageSet, order: Order, out: Path, pool: Pool | None = None
) -> AttackSet:
    """Attack every image of `test` and write the set to `out`; clean images for the attack `clean`.

    `pool` does the groups; None is this process.

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
        attacking = Attacking(bundle, test, order)
        made = attacking.plan
        parts.mkdir(parents=True, exist_ok=True)
        same_run(parts / "order.json", dataclasses.replace(order, bundle=bundle.digest, data=test.digest()))
        images, success = _attacked(attacking, parts, pool or Here())
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


def _attacked(attacking: Attacking, parts: Path, pool: Pool) -> tuple[Tensor, Tensor]:
    """Attacked images [N, C, H, W] and successes [N]; groups that lie in `parts` are not redone."""
    order = attacking.order
    files = {start: parts / f"{start:06}.safetensors" for start in range(0, len(attacking.test), order.batch)}
    left = [start for start, kept in files.items() if not kept.exists()]
    bar = tqdm(
        total=len(files), initial=len(files) - len(left), desc=f"{order.attack}, groups", mininterval=2
    )
    with bar:
        for start, (images, success) in pool.map(attacking, left):
            half = files[start].with_suffix(".writing")
            save_file({"images": images, "success": success}, half)
            half.replace(files[start])
            bar.update()
    groups = [load_file(kept) for kept in files.values()]
    return torch.cat([one["images"] for one in groups]), torch.cat([one["success"] for one in groups])
