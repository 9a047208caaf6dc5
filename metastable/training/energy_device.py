"""Train a convergent energy on a GPU: Algorithm 2 with one CUDA graph an update (`energy_update`).

Chains start from data and are rejuvenated, weights start from score matching; Adam, then SGD.  Every minute
chains of some thousand steps from held-out training images judge the weights, and the best so far are kept
(`energy_watch`).  A run that goes astray returns to where it was well and halves its rates; one that is good
enough stops.  On a CPU it is the same loop without a graph: let it check every half hour.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metastable import bundle, datasets
from metastable.bundle import shipped
from metastable.engine.runners.cuda_graphs import Recording
from metastable.errors import DataError
from metastable.networks import channels_last
from metastable.training import health
from metastable.training.energy import start_bank, start_network
from metastable.training.energy_update import DeviceConfig, Trainer
from metastable.training.energy_watch import Watch, check, rank
from metastable.training.run import Paused, Run, device_of

Told = Callable[[dict[str, Any]], None]
WARMING = ((0.05, 0.2), (0.65, 1.0), (0.85, 0.3), (1.0, 0.1))
"""Score matching up to these shares of its updates runs at these shares of its rate."""
FREE = (
    *("updates", "switch", "adam_lr", "sgd_lr", "half", "kernels", "report_every"),
    *("check_s", "check_images", "check_steps", "accuracy"),
)
"""What may change when a run goes on."""


class _Training:
    """A run in its folder; see `train`."""

    def __init__(
        self, config: DeviceConfig, data: datasets.Source, out: Path, device: torch.device, told: Told
    ) -> None:
        self._told = told
        self.run = Run(out, config, free=FREE)
        self.config, self._device, self._out = config, device, out
        train_set = datasets.load(config.dataset, data, "train")
        datasets.require_labels(train_set, "the check of chains")
        learned = train_set.images[: -config.held]
        if len(learned) == 0:
            raise DataError(f"{config.held} of {len(train_set)} images held out leave none: lower --held")
        asked = slice(-config.held, len(learned) + config.check_images)
        self._images, self._labels = datasets.to_float(train_set.images[asked]), train_set.labels[asked]
        self._classifier: nn.Module = bundle.load(shipped.path(config.bundle)).classifier
        self._classifier = copy.deepcopy(self._classifier).to(device).eval()
        network = channels_last(start_network(config, datasets.of(config.dataset, data).shape).to(device))
        self.trainer = Trainer(network, learned, start_bank(config, learned), config, device)
        self.digest, self.record = train_set.digest(), health.Record()
        self.warmed, self.update, self.returns, self.checks = 0, 0, 0, list[dict[str, Any]]()
        self.best: tuple[tuple[bool, float], dict[str, Tensor]] | None = None
        self._watch = Watch(config, int(learned[0].numel()))
        self._optimizer: torch.optim.Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    def go(self) -> None:
        """All updates that are left.  Raises Paused, after a last check, when the sitting is over."""
        if (saved := self.run.resume()) is not None:
            self._restore(saved)
            self.warmed, self.update, self.returns = saved["warmed"], saved["update"], saved["returns"]
            self.record = [(d, strength) for d, strength in saved["record"].tolist()]
            self.checks = json.loads(saved["checks"])
            self.best = (tuple(saved["best_rank"]), saved["best"]) if saved["best"] else None
        # A resumed run has other random numbers than one without a pause.
        torch.manual_seed(self.config.seed * 1_000_003 + self.update + self.warmed)
        if self.warmed < self.config.warm:
            self._warm()
        bar = tqdm(total=self.config.updates, initial=self.update, desc="Algorithm 2", mininterval=5)
        well = self._state()
        while self.update < self.config.updates:
            before = self.update
            self._some()
            bar.update(self.update - before)
            recent = self.trainer.recent()
            for key in recent:
                recent[key] = recent[key][before - self.update :]
            if self._watch.astray(recent):
                self._return_to(well)
                continue
            self.record += zip(recent["d"], recent["strength"], strict=True)
            self.run.log(
                update=self.update,
                rate=self.trainer.rate,
                lr=self.config.adam_lr if self.update <= self.config.switch else self.config.sgd_lr,
                spread=fmean(recent["spread"]),
                **health.signals(self.record[-self.config.report_every :], self.trainer.bank),
            )
            last = self.checks[-1]["spent_s"] if self.checks else 0.0
            if self.run.spent_s - last >= self.config.check_s:
                well = self._state()
                if self._watch.done(recent, self.judge()):
                    break
            try:
                self.run.checkpoint(self._state)
            except Paused:
                self.judge()
                self.run.checkpoint(self._state, now=True)  # with that check, and perhaps better weights
                raise
        bar.close()
        self.judge()
        self.run.checkpoint(self._state, now=True)

    def judge(self) -> dict[str, Any]:
        """Check the present weights; keep them if they are the best so far."""
        final, found = check(self.trainer, self._classifier, self._images, self._labels)
        self.checks.append({"update": self.update, **found, "spent_s": self.run.spent_s})
        self._told(self.checks[-1])
        if self.best is None or rank(found) > self.best[0]:
            weights = {k: v.detach().cpu().clone() for k, v in self.trainer.network.state_dict().items()}
            self.best = rank(found), weights
            self.run.keep(weights, now=True)
        panels = {
            f"bank after {self.update} updates": self.trainer.bank[:64].float().cpu(),
            "held-out images": self._images[:64],
            f"after {self.config.check_steps} steps": final[:64],
        }
        health.draw_samples(self._out / "samples.png", panels)
        if self.record:
            health.draw_record(self._out / "health.png", self.record, self.config.switch)
        said = {"update": self.update, "returns": self.returns, "last": found, "checks": self.checks}
        (self._out / "so-far.json").write_text(json.dumps(said, indent=2) + "\n")
        return found

    def _warm(self) -> None:
        """What is left of score matching.  Raises Paused when the sitting is over."""
        config = self.config
        bar = tqdm(total=config.warm, initial=self.warmed, desc="score matching", mininterval=5)
        for share, rate in WARMING:
            until = round(share * config.warm)
            if self.warmed >= until:
                continue
            optimizer = self._take(adam=True, warm=rate)
            work = self._recorded(lambda: self.trainer.warm(optimizer))  # noqa: B023
            self.warmed += work.made
            while self.warmed < until:
                work.replay()
                self.warmed += 1
                bar.update(self.warmed - bar.n)
                self.run.checkpoint(self._state)
            self._saved = optimizer.state_dict()
        bar.close()
        self._optimizer = self._saved = None  # maximum likelihood starts with its own

    def _take(self, *, adam: bool, warm: float = 0.0) -> torch.optim.Optimizer:
        """A new optimizer, with the state of the one before it or of the checkpoint where they are akin."""
        optimizer = self._optimizer = self.trainer.optimizer(adam=adam, warm=warm)
        if self._saved is not None and adam and "betas" in self._saved["param_groups"][0]:
            own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            optimizer.load_state_dict(self._saved)
            for group, options in zip(optimizer.param_groups, own, strict=True):
                group.update(options)  # of this device, and with the rates of now
        self._saved = None
        return optimizer

    def _recorded(self, work: Callable[[], None]) -> Recording:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            return Recording(work, self._device, None)

    def _some(self) -> None:
        """As many updates as there are to the next report, the switch or the end, by one optimizer."""
        config, adam = self.config, self.update < self.config.switch
        until = min(config.switch if adam else config.updates, config.updates)
        until = min(until, self.update + config.report_every)
        if self._optimizer is None or isinstance(self._optimizer, torch.optim.Adam) != adam:
            optimizer = self._take(adam=adam)
            self._work = self._recorded(lambda: self.trainer.update(optimizer))
            self.update += self._work.made  # updates like all others
        while self.update < until:
            self._work.replay()
            self.update += 1

    def _state(self) -> dict[str, Any]:
        return {
            "network": _copied(self.trainer.network.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()) if self._optimizer else None,
            "bank": self.trainer.bank.clone(),
            "record": torch.tensor(self.record, dtype=torch.float64).view(-1, 2),
            "warmed": self.warmed,
            "update": self.update,
            "rate": self.trainer.rate,
            "returns": self.returns,
            "checks": json.dumps(self.checks),
            "best": self.best[1] if self.best else None,
            "best_rank": list(self.best[0]) if self.best else [],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.trainer.network.load_state_dict(state["network"])
        self.trainer.bank.copy_(state["bank"])
        self.trainer.rate, self._saved, self._optimizer = state["rate"], state["optimizer"], None

    def _return_to(self, state: dict[str, Any]) -> None:
        self.returns += 1
        rate = self.trainer.rate / 2
        self._restore(state)
        self.trainer.rate, self._saved = rate, None
        self.run.log(update=self.update, returned=1, rate=rate)


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def train(
    config: DeviceConfig,
    data: datasets.Source,
    out: Path,
    device: str = "auto",
    told: Told = lambda check: None,
) -> dict[str, Any]:
    """Train in run folder `out`, resume where a checkpoint is, and return the metrics.

    `told` gets every check of the weights (`energy_watch.check`, and the update) as it is made.

    The weights that are written are those of the best check, not of the last update.  Beside what a Run
    writes there are `health.png`, `samples.png` and `so-far.json`, renewed at every check.

    Raises:
        DataError: data are missing or too few, or `out` holds a run with another configuration.
        BundleError: there is no bundle with a classifier where the configuration says.
        Paused: the sitting is over.
    """
    training = _Training(config, data, out, device_of(device), told)
    training.go()
    assert training.best is not None, "the last act of a run is a check"
    network = training.trainer.network
    network.load_state_dict(training.best[1])
    found = {
        **health.summary(training.record, config.switch),
        "checks": training.checks,
        "returns": training.returns,
        "rate": training.trainer.rate,
        "learning_rates": config.learning_rates,
        "train_digest": training.digest,
    }
    return training.run.finish(network, found)
