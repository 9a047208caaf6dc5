"""Train an energy network by maximum likelihood with persistent chains: Hill 2021, Algorithm 2.

An update draws data x+ (training images plus a little noise), takes as many chains from a
persistent bank, moves them K Langevin steps under the present energy to x-, stores them back, and
descends the likelihood gradient

    d/dtheta [ mean U(x+; theta) - mean U(x-; theta) ].

Adam learns first, and its short-run samples look good; plain SGD then makes the steady state agree
with the data ("convergent" learning).  A run whose switch lies past its last update keeps Adam
throughout: the paper's non-convergent control.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.networks import channels_last
from metastable.networks.energy import ACTIVATIONS, Activation, EnergyNetwork
from metastable.training import health
from metastable.training.run import Paused, Run, device_of
from metastable.training.sampler import Sampler, run_chains

DIVERGED = 1e6
"""An energy difference beyond this stops a run.  MNIST runs start at some hundreds, and fall."""


@dataclass(frozen=True)
class EnergyMlConfig:
    """Settings of Algorithm 2; the defaults are the paper's (its text; its code trains longer).

    Lengths (tau, data_noise) are in [0, 1] image units: half the paper's 0.01 and 0.02.

    `adam_lr` and `sgd_lr` are the paper's figures; `learning_rates` gives what the optimizers get.
    The two differ because the paper's code trains f = c U, with c = (2 tau)^2 / 2 = 5e-5, and our
    network returns U: same hidden layers, last layer divided by c.  The code descends
    (f+ - f-) / c = U+ - U-, so gradients of hidden weights are the same as ours, and those of the
    last layer are c times ours while its weights are c times ours too.  Hence

        Adam (its step does not depend on the gradient's scale): hidden lr, last lr / c
        SGD (the code uses c lr):   hidden c lr,   last c lr * c / c^2 = lr / c

    which is 1e-4 and 2 for Adam, 2.5e-9 and 1 for SGD.  No single rate does the same to U, and
    5e-5 for every weight of U would be 20 000 times too much for some and too little for others.

    Attributes:
        dataset: a name of metastable.datasets.
        features: width n of the EnergyNetwork.
        activation: leaky or silu.
        wall: around images, 0 for none.
        updates: number of updates in all.
        switch: updates made with Adam; SGD makes the rest.
        batch: images, and chains, an update.
        steps: K, Langevin steps an update.
        tau: Langevin step size.
        data_noise: standard deviation of the noise on data.
        adam_lr: Adam's rate for the folded network f.
        sgd_lr: SGD's rate for f, before the code's factor c.
        bank: number of persistent chains; 0 for one a training image.
        bank_init: "uniform" (the paper) or "data": chains start as uniform noise or as training
            images.  Runs of only hundreds of updates never bring chains from noise to images.
        seed: of weights, batches and chains.
        report_every: updates between lines of the log.
        long_steps: Langevin steps of the long-run check at the end of the run, and of every sitting.

    `updates` and `switch` may change when a run goes on; the metrics then count by the last switch.
    """

    dataset: str = "cifar10"
    features: int = 32
    activation: str = "leaky"
    wall: float = 0.0
    updates: int = 150_000
    switch: int = 50_000
    batch: int = 100
    steps: int = 100
    tau: float = 0.005
    data_noise: float = 0.01
    adam_lr: float = 1e-4
    sgd_lr: float = 5e-5
    bank: int = 0
    bank_init: str = "uniform"
    seed: int = 0
    report_every: int = 100
    long_steps: int = 1500

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run can have."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}: use {' or '.join(ACTIVATIONS)}")
        if self.bank_init not in ("uniform", "data"):
            raise ValueError(f"bank_init is {self.bank_init!r}: use uniform or data")
        if self.tau <= 0 or min(self.updates, self.batch, self.steps, self.report_every) < 1:
            raise ValueError("tau must be positive; updates, batch, steps and report_every at least 1")
        if 0 < self.bank < self.batch:
            raise ValueError(f"a bank of {self.bank} chains cannot fill a batch of {self.batch}")

    @property
    def fold(self) -> float:
        """c, the paper's tau^2 / 2; its tau counts in [-1, 1] units."""
        return 0.5 * (2 * self.tau) ** 2

    @property
    def learning_rates(self) -> dict[str, dict[str, float]]:
        """Rates for gradients of U, by optimizer and part of the network."""
        return {
            "adam": {"hidden": self.adam_lr, "last": self.adam_lr / self.fold},
            "sgd": {"hidden": self.sgd_lr * self.fold, "last": self.sgd_lr / self.fold},
        }


def start_network(config: EnergyMlConfig, shape: datasets.Shape) -> EnergyNetwork:
    """A fresh network for images of `shape`, whose f = c U has PyTorch's usual initial weights.

    So it is in the paper's code, and the first Langevin steps already have a drift of the right order: a U
    with the usual initial weights would have to grow 1 / c = 20 000 times before it moved anything.
    """
    size = datasets.square(shape, "an energy network")
    torch.manual_seed(config.seed)
    activation = cast(Activation, config.activation)
    network = EnergyNetwork(shape[0], size, config.features, activation, config.wall)
    with torch.no_grad():
        for p in network.last.parameters():
            p.div_(config.fold)
    return network


def train_energy_ml(
    config: EnergyMlConfig, data: datasets.Source, out: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train by Algorithm 2 in run folder `out`; resumes exactly where a checkpoint was made.

    Beside what a Run writes, `health.png` shows the energy difference and the gradient strength
    after every update, and `samples.png` chains of the bank and, at the end, chains that went
    `long_steps` from test images.  Where a sitting ends first, `so-far.json` says the same of the weights
    kept so far as the metrics would.  Returns the metrics.

    Raises:
        DataError: data are missing, or `out` holds a run with another configuration.
        ValueError: the bank is smaller than a batch.
        RuntimeError: training diverged; the last checkpoint stays as it was.
        Paused: the sitting is over; what it came to is written first, which takes a long-run check.
    """
    run, dev = Run(out, config, free=("updates", "switch")), device_of(device)
    train_set = datasets.load(config.dataset, data, "train")
    test_images = datasets.to_float(datasets.load(config.dataset, data, "test").take(64).images)
    network = channels_last(start_network(config, datasets.of(config.dataset, data).shape).to(dev))
    bank, update = start_bank(config, train_set.images), 0
    if len(bank) < config.batch:
        raise ValueError(f"{len(bank)} chains cannot fill a batch of {config.batch}")
    record: health.Record = []
    optimizer = _optimizer(network, config, update)
    if (saved := run.resume()) is not None:
        network.load_state_dict(saved["network"])
        bank, update = saved["bank"], saved["update"]
        record = [(d, strength) for d, strength in saved["record"].tolist()]
        optimizer = _optimizer(network, config, update)
        # SGD has no state, and neither takes over the other's settings where the switch has moved.
        if update < config.switch and "betas" in saved["optimizer"]["param_groups"][0]:
            optimizer.load_state_dict(saved["optimizer"])

    def state() -> dict[str, Any]:
        """What a checkpoint holds; the pictures are drawn whenever one is made."""
        health.draw_record(out / "health.png", record, config.switch)
        health.draw_samples(out / "samples.png", {f"bank after {update} updates": bank[:64]})
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "bank": bank,
            "record": torch.tensor(record, dtype=torch.float64),
            "update": update,
        }

    def judged(title: str) -> dict[str, Any]:
        """What the record and a long run say of the present weights; the pictures show it."""
        final, check = long_run(network, test_images, config)
        panels = {title: bank[:64], "test images": test_images, f"after {config.long_steps} steps": final}
        health.draw_samples(out / "samples.png", panels)
        return {**health.summary(record, config.switch), "long_run": check}

    sampler = Sampler(network, (config.batch, *train_set.images.shape[1:]), config.tau, config.steps, dev)
    bar = tqdm(total=config.updates, initial=update, desc="maximum likelihood", unit="update", mininterval=5)
    while update < config.updates:
        if update == config.switch:
            optimizer = _optimizer(network, config, update)
        positive, rows, rng = _draw_batch(train_set.images, len(bank), config, update, dev)
        chains = bank[rows].to(dev).float().contiguous(memory_format=torch.channels_last)
        negative, strength = sampler(chains, rng)
        u_data, u_samples = network(torch.cat([positive, negative])).chunk(2)
        loss = u_data.mean() - u_samples.mean()
        d = loss.item()
        record.append((d, strength))
        if not abs(d) < DIVERGED:  # also true of NaN
            run.log(update=update + 1, **health.signals(record[-config.report_every :], negative))
            bar.close()
            raise RuntimeError(
                f"training diverged at update {update + 1}: the energy difference is {d:.3g}. "
                "Start another run with lower learning rates; the last checkpoint was left alone."
            )
        bank[rows] = negative.to("cpu", bank.dtype)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        update += 1
        bar.update()
        if update % config.report_every == 0:
            run.log(update=update, **health.signals(record[-config.report_every :], bank))
            bar.set_postfix(d=f"{d:.1f}", gradient=f"{strength:.0f}", refresh=False)
        run.keep(network)
        try:
            run.checkpoint(state)
        except Paused:
            found = {"update": update, **judged(f"bank after {update} updates")}
            (out / "so-far.json").write_text(json.dumps(found, indent=2) + "\n")
            raise
    bar.close()
    run.checkpoint(state, now=True)
    return run.finish(
        network,
        {
            **judged("bank"),
            "learning_rates": config.learning_rates,
            "bank_chains": len(bank),
            "train_digest": train_set.digest(),
        },
    )


def start_bank(config: EnergyMlConfig, images: Tensor) -> Tensor:
    """The chains before training: float16 [bank, C, H, W] in [0, 1], in main memory.

    `images` is the uint8 training set.  Half precision rounds a chain by at most 2.4e-4 once in
    K steps, each of which adds noise of 5e-3; a bank of one chain an image then takes 94 MB for
    MNIST and 307 MB for CIFAR-10, and every checkpoint as much.
    """
    size = config.bank or len(images)
    if config.bank_init == "data":
        return datasets.to_float(images[torch.arange(size) % len(images)]).half()
    rng = torch.Generator().manual_seed(config.seed)
    return torch.empty(size, *images.shape[1:], dtype=torch.float16).uniform_(generator=rng)


@torch.no_grad()
def long_run(
    network: EnergyNetwork, start: Tensor, config: EnergyMlConfig
) -> tuple[Tensor, dict[str, float]]:
    """Run one chain of `long_steps` from every image of `start` [N, C, H, W], and describe the end.

    `energy_drift` is mean U(end) - mean U(start + data noise): near 0 where the steady state
    agrees with the data, far below where samples over-saturate.  `squared_distance` is the mean
    over pixels of (end - start)^2 in [0, 1] units.  Returns the last states on the CPU, and these.
    """
    device = next(network.parameters()).device
    rng = torch.Generator(device).manual_seed(config.seed)
    start = start.to(device).contiguous(memory_format=torch.channels_last)
    noisy = start + config.data_noise * torch.randn(start.shape, generator=rng, device=device)
    end, strength = run_chains(network, start, config.tau, config.long_steps, rng)
    return end.cpu(), {
        "steps": config.long_steps,
        "images": len(start),
        "squared_distance": (end - start).square().mean().item(),
        "pixel_min": end.min().item(),
        "pixel_max": end.max().item(),
        "energy_drift": (network(end).mean() - network(noisy).mean()).item(),
        "gradient_strength": strength,
    }


def _optimizer(network: EnergyNetwork, config: EnergyMlConfig, update: int) -> torch.optim.Optimizer:
    adam = update < config.switch
    rates = config.learning_rates["adam" if adam else "sgd"]
    groups = [
        {"params": list(network.hidden.parameters()), "lr": rates["hidden"]},
        # Without the last bias: it shifts U by a constant, so its gradient is nothing but rounding.
        {"params": [network.last.weight], "lr": rates["last"]},
    ]
    return torch.optim.Adam(groups) if adam else torch.optim.SGD(groups)


def _draw_batch(
    images: Tensor, chains: int, config: EnergyMlConfig, update: int, device: torch.device
) -> tuple[Tensor, Tensor, torch.Generator]:
    """Noisy data [B, C, H, W], distinct rows of the bank [B], and the generator of the chains.

    All three are functions of seed and update alone, so a resumed run goes on the same.
    """
    key = 2 * (config.seed * 1_000_003 + update)  # two generators an update, never of the same key
    rng = torch.Generator().manual_seed(key)
    pick = torch.randint(0, len(images), (config.batch,), generator=rng)
    rows = torch.randperm(chains, generator=rng)[: config.batch]
    clean = datasets.to_float(images[pick])
    noisy = clean + config.data_noise * torch.randn(clean.shape, generator=rng)
    positive = noisy.to(device).contiguous(memory_format=torch.channels_last)
    return positive, rows, torch.Generator(device).manual_seed(key + 1)
