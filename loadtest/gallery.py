"""Misses: what was sent, what purification makes of it, and the difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from loadtest.items import Item
from loadtest.records import Record
from metastable import noise
from metastable.bundle import Bundle
from metastable.defense import defend
from metastable.images import decode

MISSES = 8
CHAINS = 8  # of the pictures; more would only be smoother
GAIN = 5  # of the difference


def choose(records: Sequence[Record], most: int = MISSES) -> list[Record]:
    """Wrong answers, in turn from every arm and source that has some."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.measured and record.verdict and not record.right:
            groups.setdefault((record.arm, record.source), []).append(record)
    turns = range(max(map(len, groups.values()), default=0))
    return [group[turn] for turn in turns for group in groups.values() if turn < len(group)][:most]


def draw(misses: Sequence[Record], items: Sequence[Item], bundle: Bundle) -> Figure:
    """One row a miss.  The purified images are computed here, with the setting that answered and fresh noise.

    Raises RequestError for an item that is no image.
    """
    figure = Figure(figsize=(6, 2.1 * len(misses)), layout="constrained")
    axes = figure.subplots(len(misses), 3, squeeze=False)
    channels, height, width = bundle.shape
    for row, miss in enumerate(misses):
        assert miss.verdict is not None
        sent = decode(items[miss.item].body, size=(height, width), channels=channels, fit=bundle.fit).pixels
        setting = bundle.settings[miss.verdict.setting]
        shown = dataclasses.replace(setting, chains=min(CHAINS, setting.chains))
        purified = defend(
            sent[None],
            [noise.secret_seed()],
            shown,
            classifier=bundle.classifier,
            scores=bundle.scores,
            flagged=torch.tensor([miss.verdict.flagged]),
        ).purified[0]
        difference = 0.5 + GAIN * (purified - sent)
        for column, image in enumerate((sent, purified, difference)):
            axes[row, column].imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), cmap="gray")
            axes[row, column].axis("off")
        truth, said = (_name(bundle, label) for label in (miss.label, miss.verdict.label))
        axes[row, 0].set_title(f"{miss.arm}, {miss.source} {miss.row}", fontsize=8)
        axes[row, 1].set_title(f"purified ({shown.chains} chains)", fontsize=8)
        axes[row, 2].set_title(f"difference x {GAIN}", fontsize=8)
        axes[row, 0].text(0, 1.12 * height, f"{truth}, answered {said}", fontsize=8)
    return figure


def _name(bundle: Bundle, label: int) -> str:
    return bundle.classes[label] if label < len(bundle.classes) else str(label)
