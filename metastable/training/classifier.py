"""Train a classifier: the fast recipe of Jordan (2024) for WhitenedNet, a WideResNet or a small Cnn.

SGD with Nesterov momentum on a triangular (one-cycle) schedule, label smoothing 0.2, shifts of
two pixels with reflected borders, mirror images that alternate by epoch, and an average of the
weights towards the end (lookahead).  bfloat16 convolutions where the machine has them.

With `adversarial` it learns images that PGD has moved, made anew from the present weights for every
batch: min over weights of E[max over the ball of the loss] (Madry et al. 2018, eq. 2.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from metastable import datasets
from metastable.attacks.pgd import pgd
from metastable.errors import DataError
from metastable.networks import channels_last
from metastable.networks.classifier import WhitenedNet, WideResNet
from metastable.networks.cnn import Cnn
from metastable.networks.compact import CompactResNet
from metastable.training.run import Ema, Learner, Run, device_of, seen_by


@dataclass(frozen=True)
class ClassifierConfig:
    """Learning rates are per 1 024 examples of a summed loss, decoupled from the momentum.

    Attributes:
        dataset: a name of metastable.datasets, which says whether images are mirrored.
        network: "whitened", "wrn-DEPTH-WIDTH", "wrn-DEPTH-WIDTH-silu", "compact-A-B-C", or for digits
            "cnn" or "cnn-A-B-C" with its widths.
        epochs: passes over the training images.
        batch: images an update.
        lr: peak learning rate.
        momentum: of Nesterov's kind.
        weight_decay: per 1 024 examples, as the rates.
        bias_lr_factor: the biases of norms learn so many times faster.
        label_smoothing: share of a label's weight that all classes divide among them.
        shift: greatest shift of an image, in pixels.
        whiten_bias_epochs: epochs in which the bias of the whitening layer learns.
        adversarial: radius of the l_inf ball, in [0, 1] units, that PGD moves images in; 0 for none.  It
            grows from 0 over the first fifth of the updates, so that something is learned first.
        attack_steps: steps of PGD, each 2.5 radii divided by their number long.
        seed: of weights, order and augmentation.
        bf16: convolutions in bfloat16, where the machine has them.
    """

    dataset: str = "cifar10"
    network: str = "whitened"
    epochs: int = 12
    batch: int = 1024
    lr: float = 11.5
    momentum: float = 0.85
    weight_decay: float = 0.0153
    bias_lr_factor: float = 64.0
    label_smoothing: float = 0.2
    shift: int = 2
    whiten_bias_epochs: int = 3
    adversarial: float = 0.0
    attack_steps: int = 10
    seed: int = 0
    bf16: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run can have."""
        if not 0 <= self.adversarial <= 1 or self.attack_steps < 1:
            raise ValueError("adversarial must lie in [0, 1], and attack_steps be 1 or more")


def build(
    name: str, classes: int = 10, shape: datasets.Shape = (1, 28, 28)
) -> WhitenedNet | WideResNet | CompactResNet | Cnn:
    """A new classifier by its name; `shape` is of its images, which only `cnn` needs to know."""
    if name == "whitened":
        return WhitenedNet(classes)
    kind, *numbers = name.split("-")
    if kind == "cnn":
        a, b, c = (int(n) for n in numbers) if numbers else (128, 64, 128)
        return Cnn(classes, shape[0], datasets.square(shape, name), (a, b, c))
    if kind == "compact":
        a, b, c = (int(n) for n in numbers)
        return CompactResNet(classes, widths=(a, b, c))
    depth, width, *smooth = numbers
    return WideResNet(int(depth), int(width), classes, activation="silu" if smooth == ["silu"] else "relu")


def augment(
    images: Tensor, epoch: int, shift: int, flip_first: Tensor | None, rng: torch.Generator
) -> Tensor:
    """Random shifts of up to `shift` pixels; each image is mirrored in every second epoch.

    Args: images [B, C, H, W]; flip_first bool [B], which images start mirrored; None mirrors none ever.
    """
    b, _, height, width = images.shape
    if flip_first is not None:
        flip = flip_first if epoch % 2 == 0 else ~flip_first
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    padded = F.pad(images, (shift,) * 4, mode="reflect")
    corners = torch.randint(0, 2 * shift + 1, (b, 2), generator=rng)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2s+1, 2s+1, H, W]
    return windows[torch.arange(b), :, corners[:, 0], corners[:, 1]]


@torch.no_grad()
def accuracy(network: nn.Module, data: datasets.ImageSet, batch: int = 500) -> float:
    """Share of `data` whose label the network gives."""
    network.eval()
    device = next(network.parameters()).device
    right = 0
    for start in range(0, len(data), batch):
        x = datasets.to_float(data.images[start : start + batch]).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        predicted = network(x).argmax(1).cpu()
        right += int((predicted == data.labels[start : start + batch]).sum())
    return right / len(data)


def _optimizer(network: nn.Module, config: ClassifierConfig) -> torch.optim.SGD:
    # Per-example rate: the sum over a batch is what is back-propagated, and a momentum of m
    # multiplies a steady gradient by 1 / (1 - m).
    scale = 1024 * (1 + 1 / (1 - config.momentum))
    lr, decay = config.lr / scale, config.weight_decay * config.batch / scale
    groups = []
    for is_norm in (True, False):
        rate = lr * (config.bias_lr_factor if is_norm else 1.0)
        chosen = [
            p
            for n, p in network.named_parameters()
            if p.requires_grad and (".norm" in n or _is_norm_bias(network, n)) == is_norm
        ]
        groups.append({"params": chosen, "lr": rate, "weight_decay": decay / rate, "peak": rate})
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)


def _is_norm_bias(network: nn.Module, name: str) -> bool:
    owner = network.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.BatchNorm2d)


def _one_cycle(step: int, total: int) -> float:
    """Linear from 0.2 to 1 in the first 23 % of steps, then linear down to 0.07."""
    peak = 0.23 * total
    if step < peak:
        return 0.2 + 0.8 * step / peak
    return 1.0 - 0.93 * (step - peak) / (total - peak)


def train(config: ClassifierConfig, data: datasets.Source, out: Path, device: str = "auto") -> dict[str, Any]:
    """Train, resume where a checkpoint is, and return the metrics (test accuracy with n)."""
    run, dev = Run(out, config), device_of(device)
    train_set = datasets.load(config.dataset, data, "train")
    torch.manual_seed(config.seed)
    datasets.require_labels(train_set, "a classifier")
    row = datasets.of(config.dataset, data)
    network = build(config.network, len(row.classes), row.shape)
    if isinstance(network, WhitenedNet):
        network.fit_whitening(datasets.to_float(train_set.images[:5000]))
    channels_last(network.to(dev))
    optimizer = _optimizer(network, config)
    average = Ema(network, 0.0)
    images, labels = datasets.to_float(train_set.images), train_set.labels
    flip_first = torch.rand(len(labels), generator=torch.Generator().manual_seed(config.seed)) < 0.5
    per_epoch = len(labels) // config.batch
    total = per_epoch * config.epochs
    learner = Learner(network, optimizer, average)
    learner.resume(run)

    bar = tqdm(total=total, initial=learner.step, desc="classifier", unit="batch", mininterval=5)
    while (step := learner.step) < total:
        epoch, index = divmod(step, per_epoch)
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(config.seed * 7919 + epoch)
        )
        pick = order[index * config.batch : (index + 1) * config.batch]
        flips = flip_first[pick] if row.mirrored else None
        x, y = augment(images[pick], epoch, config.shift, flips, rng).to(dev), labels[pick].to(dev)
        if isinstance(network, WhitenedNet):
            network.whiten.bias.requires_grad_(epoch < config.whiten_bias_epochs)  # type: ignore[union-attr]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _one_cycle(step, total)
        with torch.autocast(dev.type, torch.bfloat16, enabled=config.bf16):
            if config.adversarial:
                x = _attacked(network, x, y, config, step, min(1.0, (step + 1) / (0.2 * total)))
            network.train()
            logits = network(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing, reduction="sum")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        learner.step = step = step + 1
        if step % 5 == 0:
            _lookahead(network, average, step, total)
        bar.update()
        if step % 20 == 0:  # seldom: it waits for the device
            bar.set_postfix(loss=f"{loss.item() / len(pick):.3f}", refresh=False)
        if step % per_epoch == 0:
            run.log(epoch=step / per_epoch, loss=loss.item() / len(pick))
        run.keep(network)
        run.checkpoint(learner.state)
    bar.close()
    run.checkpoint(learner.state, now=True)
    average.copy_to(network)
    test = datasets.load(config.dataset, data, "test")
    return run.finish(
        network,
        {
            "network": config.network,
            "test_accuracy": accuracy(network, test),
            "test_n": len(test),
            "train_digest": train_set.digest(),
            "test_digest": test.digest(),
        },
    )


def trained(run: Path) -> nn.Module:
    """The classifier of a finished run folder, in eval mode; DataError if there is none."""
    try:
        config = json.loads((run / "config.json").read_text())
        weights = load_file(run / "weights.safetensors")
    except OSError as error:
        raise DataError(f"{run} holds no finished classifier run: {error.strerror}") from None
    seen = seen_by(run)
    network = build(config["network"], len(seen.classes), seen.shape)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _attacked(
    network: nn.Module, x: Tensor, y: Tensor, config: ClassifierConfig, step: int, share: float
) -> Tensor:
    """The batch as PGD, in that share of the ball, moves it; batch norm uses its running statistics."""
    network.eval()
    eps = config.adversarial * share
    # The strongest candidate of all steps, which is at least as strong as Madry's last.
    return pgd(
        network,
        x,
        y,
        eps=eps,
        step=2.5 * eps / config.attack_steps,
        steps=config.attack_steps,
        seed=(config.seed * 1_000_003 + step) % 2**32,
    )


def _lookahead(network: nn.Module, average: Ema, step: int, total: int) -> None:
    """Pull the fast weights to their slow average and back: 0.95^5 at the start, 1 at the end."""
    average.decay = 0.95**5 * (step / total) ** 3
    fast = network.state_dict()
    with torch.no_grad():
        for name, slow in average.shadow.items():
            if slow.is_floating_point():
                slow.lerp_(fast[name], 1 - average.decay)
                fast[name].copy_(slow)
            else:
                slow.copy_(fast[name])
