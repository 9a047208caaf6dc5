"""Energies of natural, adversarial and noise images (Hill 2021, Figure 7).

Adversarial images are those of PGD on the bare classifier; noise is uniform in [0, 1].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metastable import console, datasets
from metastable.attacks.pgd import Pgd
from metastable.attacks.white_box import attackable
from metastable.console import beside
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion
from metastable.evaluation.stats import auroc
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import EnergyNetwork
from metastable.networks.onnx_gradient import IMAGES

KINDS = {"natural": "#4477aa", "adversarial": "#ee6677", "noise": "#777777"}


@torch.no_grad()
def energies(network: nn.Module, images: Tensor, batch: int = 250) -> np.ndarray:
    """U of images [N, C, H, W] in [0, 1], float64 [N]."""
    return torch.cat([network(x) for x in torch.split(images, batch)]).double().numpy()


def summarize(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean and standard deviation of every kind, and the chance that it lies above a natural image."""
    return {
        kind: {
            "n": len(values),
            "mean": round(float(values.mean()), 4),
            "std": round(float(values.std()), 4),
            "above_natural": round(auroc(found["natural"].tolist(), values.tolist()), 4),
        }
        for kind, values in found.items()
    }


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    """Histograms of all kinds, and of natural and adversarial images alone."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kinds in zip(figure.subplots(1, 2), (list(KINDS), list(KINDS)[:2]), strict=True):
        edges = np.histogram_bin_edges(np.concatenate([found[kind] for kind in kinds]), bins=60)
        for kind in kinds:
            axes.hist(found[kind], bins=edges, alpha=0.6, density=True, color=KINDS[kind], label=kind)
        axes.set_xlabel("energy U")
        axes.legend()
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "energies",
        parents=parents[:1],
        help="energies of natural, adversarial and noise images (Hill 2021, Figure 7)",
        description=__doc__,
    )
    parser.add_argument("--network", default="energy", help="a network of the bundle that gives energies")
    parser.add_argument("--n", type=int, default=500, help="test images")
    parser.add_argument("--eps", type=cli.fraction, default="8/255", help="radius of PGD's ball")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--seed", type=console.seed, default=0, help="of attack and noise")
    parser.set_defaults(run=run, settings_file=None)


def run(args: argparse.Namespace) -> cli.Summary:
    """Attack the images, and compare energies."""
    loaded = cli.load_bundle(args)
    test = portion(cli.test_images(args, loaded), args.n)
    network = energy_network(loaded.networks, args.network)
    natural = datasets.to_float(test.images)
    attack = Pgd(eps=args.eps, step=args.eps / 4, steps=args.steps)
    batches = zip(torch.split(natural, 50), torch.split(test.labels, 50), strict=True)
    classifier = attackable(loaded, natural[:IMAGES]).classifier
    pieces = [attack(classifier, x, y, seed=args.seed + i).images for i, (x, y) in enumerate(batches)]
    noise = torch.rand(natural.shape, generator=torch.Generator().manual_seed(args.seed))
    made = {"natural": natural, "adversarial": torch.cat(pieces), "noise": noise}
    found = {kind: energies(network, images) for kind, images in made.items()}
    if picture := beside(args.out, ".png"):
        draw(found, picture)
    done = {"attack": repr(attack), "kinds": summarize(found), "machine": cli.machine()}
    return {"command": "figure energies", **done}


def energy_network(networks: dict[str, nn.Module], name: str) -> nn.Module:
    """The named network; DataError if it is not there or gives no energies."""
    if not isinstance(networks.get(name), EnergyNetwork | DenoisingEnergy):
        raise DataError(f"the bundle has no energy network {name!r}; it has {sorted(networks)}")
    return networks[name]
