"""Train a denoiser of photographs of any size, which purifies images for classifiers that it never saw.

Its loss is the squared error of D(x + sigma n), with sigma uniform from 0 to a greatest level, on patches of
the pictures in a folder at many scales.  Whole pictures are held out, and what it does to them is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metastable.networks import channels_last
from metastable.networks.unshuffled import UnshuffledUNet
from metastable.training import health, patches
from metastable.training.loop import descend
from metastable.training.patches import Augmentation, Patches, Picture
from metastable.training.run import PASSING, Ema, Learner, Run, device_of

SIGMAS = (0.05, 0.1, 0.15, 0.25)
"""Noise levels that the denoiser is judged at."""
SHORTER, CROP = 256, 224
"""Held-out pictures are judged as classifiers see them: shorter side and middle, in pixels."""


@dataclass(frozen=True)
class NaturalConfig:
    """Noise levels are in [0, 1] image units; shares are probabilities.

    Attributes:
        pictures: folder of pictures, folders in it included (default: that of --data).
        widths: of the three levels of the network, three numbers separated by commas.
        blocks: residual blocks a level.
        updates: number of updates in all.
        batch: patches an update.
        patch: height and width of patches.
        lr: peak learning rate.
        warmup: updates until the peak.
        sigma_max: greatest noise.
        gray: share of patches without colour.
        jpeg: share of patches that were compressed as JPEG, quality 50 to 95.
        clip: share of noisy patches cut to [0, 1], as those are that a server purifies.
        held_out: share of pictures that is held out.
        ema: decay of the average of weights.
        seed: of weights, patches, noise and the pictures held out.
    """

    pictures: str = field(default="", metadata=PASSING)
    widths: str = "32,64,96"
    blocks: int = 2
    updates: int = 10_000
    batch: int = 16
    patch: int = 96
    lr: float = 1e-3
    warmup: int = 200
    sigma_max: float = 0.3
    gray: float = 0.125
    jpeg: float = 0.25
    clip: float = 0.5
    held_out: float = 0.25
    ema: float = 0.999
    seed: int = 0


def train(config: NaturalConfig, data: Path, out: Path, device: str = "auto") -> dict[str, Any]:
    """Train an UnshuffledUNet on the pictures in `data`; returns metrics with `judge` of held-out ones."""
    run, dev = Run(out, config), device_of(device)
    pictures = patches.read(data, config.patch)
    seen, held = patches.split(pictures, config.held_out, config.seed)
    how = Augmentation(config.patch, config.batch, config.gray, config.jpeg, config.clip, config.sigma_max)
    source = Patches(seen, how)
    torch.manual_seed(config.seed)
    a, b, c = (int(w) for w in config.widths.split(","))
    network = channels_last(UnshuffledUNet((a, b, c), config.blocks).to(dev))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.9, 0.99))

    def loss_of(step: int) -> Tensor:
        clean, noisy = (one.to(dev) for one in source.batch(config.seed, step))
        loss: Tensor = (network.denoise(noisy) - clean).square().mean()
        return loss

    descend(
        Learner(network, optimizer, Ema(network, config.ema)),
        run,
        loss_of,
        updates=config.updates,
        lr=config.lr,
        warmup=config.warmup,
        desc="denoising photographs",
    )
    _draw(run, network, held)
    return run.finish(
        network,
        {
            **judge(network, held),
            "pictures": {"train": len(seen), "held_out": [picture.name for picture in held]},
            "pictures_sha256": patches.digest(pictures),
        },
    )


@torch.no_grad()
def judge(network: UnshuffledUNet, held: list[Picture]) -> dict[str, Any]:
    """What the denoiser does to the middles of pictures, as classifiers see them; one number a noise level.

    `psnr` is the mean over pictures of the peak signal-to-noise ratio in dB of clip(D(x + sigma n), 0, 1): of
    colour pictures, of the same with the noisy image cut to [0, 1], of JPEG inputs (against the compressed
    picture without noise) and of gray ones.  `moved` is the root mean square of D(x) - x without noise.
    """
    network.eval()
    views = [picture.resized(SHORTER).centre(CROP) for picture in held]
    kinds = {
        "colour": [patches.tensor(view.pixels) for view in views],
        "jpeg75": [patches.tensor(view.jpeg(75).pixels) for view in views],
        "jpeg50": [patches.tensor(view.jpeg(50).pixels) for view in views],
    }
    kinds["gray"] = [image.mean(0, keepdim=True) for image in kinds["colour"]]
    psnr = {
        kind: {f"{sigma:g}": _psnr(network, images, sigma) for sigma in SIGMAS}
        for kind, images in kinds.items()
    }
    psnr["clipped"] = {f"{sigma:g}": _psnr(network, kinds["colour"], sigma, clip=True) for sigma in SIGMAS}
    moved = {kind: round(_moved(network, images), 5) for kind, images in kinds.items()}
    return {"psnr": psnr, "moved": moved}


def _psnr(network: UnshuffledUNet, images: list[Tensor], sigma: float, *, clip: bool = False) -> float:
    device, generator, total = next(network.parameters()).device, torch.Generator().manual_seed(1), 0.0
    for image in images:
        noisy = image + sigma * torch.randn(image.shape, generator=generator)
        noisy = (noisy.clamp(0, 1) if clip else noisy).to(device)
        error = network.denoise(noisy[None]).clamp(0, 1)[0].cpu() - image
        total += float(-10 * error.square().mean().log10())
    return round(total / len(images), 2)


def _moved(network: UnshuffledUNet, images: list[Tensor]) -> float:
    device = next(network.parameters()).device
    return sum(float(network(one[None].to(device)).square().mean().sqrt()) for one in images) / len(images)


@torch.no_grad()
def _draw(run: Run, network: UnshuffledUNet, held: list[Picture]) -> None:
    """loss.png, and samples.png: held-out pictures, with noise, and denoised."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    lines = [line for line in run.read_log() if "loss" in line]
    axes.semilogy([line["step"] for line in lines], [line["loss"] for line in lines], ".-", linewidth=0.8)
    axes.set_xlabel("update")
    axes.set_ylabel("mean squared error")
    figure.savefig(run.folder / "loss.png", dpi=110)
    device, panels = next(network.parameters()).device, {}
    size = run.config["patch"]  # which every picture has
    clean = torch.stack([patches.tensor(one.resized(SHORTER).centre(size).pixels) for one in held[:16]])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    panels["held out"] = clean
    for sigma in (0.1, 0.25):
        noisy = (clean + sigma * noise).to(device)
        panels |= {f"noise {sigma:g}": noisy, f"denoised from {sigma:g}": network.denoise(noisy)}
    health.draw_samples(run.folder / "samples.png", panels)
