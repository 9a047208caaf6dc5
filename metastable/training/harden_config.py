"""The parameters of `harden`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metastable.training.run import PASSING

MODES = ("stability", "purifier", "both", "classifier")
LOSSES = ("ce", "trades")
OPTIMIZERS: dict[str, tuple[float, float]] = {"adamw": (2e-3, 0.05), "sgd": (0.1, 5e-4)}
"""Peak learning rate and weight decay of each where none is given."""


def _passing(default: Any) -> Any:
    """A field that a resumed run may change: it does not touch what is learned."""
    return field(default=default, metadata=PASSING)


@dataclass(frozen=True)
class HardenConfig:
    """Lengths are in [0, 1] image units.

    Attributes:
        mode: what moves, and for which loss: `stability` (the purifier, towards the classifier's own
            clean labels, no attack), `purifier` or `both` (attacks on the whole pipeline), `classifier`
            (attacks; without a purifier unless `frozen_purifier`).
        bundle: folder of the bundle whose networks are the start.
        start: name of its network that becomes the purifier.
        dataset: a name of metastable.datasets.
        images: how many training images, 0 for all.
        classifier: a new one instead: compact-A-B-C, wrn-DEPTH-WIDTH[-silu], whitened, cnn[-A-B-C].
        fresh: new weights for the bundle's classifier.
        purifier: widths "A,B,C" of a new ScoreNetwork instead of the bundle's.
        purifier_blocks: residual blocks a level of that one.
        frozen_purifier: mode `classifier` behind the purifier of the bundle.
        sigma: standard deviation of the noise that every image gets, 0 for none.
        unroll: purifying steps; from 2 on Langevin-like ones, of length `unroll_step` along the score
            and with noise of `unroll_noise` in each, instead of `sigma` and one whole step.
        unroll_step: length of these steps, as a share of the whole one.
        unroll_noise: standard deviation of the noise in each of them.
        eps: radius of the l_inf ball of the attack.
        ramp: share of the updates over which the radius grows.
        attack_steps: 1 is FGSM from a random start (Wong 2020), more PGD (Madry 2018).
        loss: `ce`, or `trades` with `beta` (Zhang 2019).
        beta: weight of the second term of `trades`.
        smoothing: share of a label's weight that all classes divide among them.
        consistency: weight of the KL of two noisy copies to their mean (Jeong and Shin 2020); -1 is 5 in
            mode stability, else 0, which makes one copy.
        entropy: weight of the entropy of that mean.
        denoise: weight of the squared error of purified images in units of sigma^2; -1 is 0.1 in mode
            stability, else 0.
        optimizer: `adamw` or `sgd`.
        lr: peak learning rate; -1 is the optimizer's own.
        weight_decay: not of norms and biases; -1 is the optimizer's own.
        purifier_lr: factor of the rate for the purifier.
        warmup: share of the updates until the peak; from there the rate falls linearly to zero.
        clip: greatest norm of the gradient.
        ema: decay of the average of weights.
        batch: images an update.
        flip: mirror images by chance.
        pad: greatest shift of an image, in pixels.
        border: what comes in at the border of a shifted image, `reflect` or `zero`.
        cutout: side of the square that is cut out of an image, in pixels; 0 for none.
        updates: how many.
        fit_minutes: as many updates as end in that time, on this machine, instead; 0 for `updates`.
        held_out: the last images of the training split, never trained on, which checks judge.
        check_every: updates between checks.
        check_images: images of a check.
        check_steps: PGD steps of a check.
        check_eot: noisy copies that a gradient of a check is averaged over.
        log_every: updates between lines of the log.
        seed: of weights, batches, noise and attacks.
        bf16: convolutions in bfloat16.
        graph: one CUDA graph an update.
        compile: by torch.compile.
        copies: folder that small results are copied to.
        every_s: seconds between checkpoints.
    """

    mode: str = "both"
    bundle: str = "model_store/cifar10"
    start: str = "score"
    dataset: str = "cifar10"
    images: int = field(default=0, metadata={"option": "n"})  # --images names a folder of pictures
    classifier: str = ""
    fresh: bool = False
    purifier: str = ""
    purifier_blocks: int = 1
    frozen_purifier: bool = False
    sigma: float = 0.1
    unroll: int = 1
    unroll_step: float = 1.0
    unroll_noise: float = 0.05
    eps: float = 8 / 255
    ramp: float = 0.0
    attack_steps: int = 1
    loss: str = "ce"
    beta: float = 6.0
    smoothing: float = 0.1
    consistency: float = -1.0
    entropy: float = 0.0
    denoise: float = -1.0
    optimizer: str = "adamw"
    lr: float = -1.0
    weight_decay: float = -1.0
    purifier_lr: float = 1.0
    warmup: float = 0.1
    clip: float = 1.0
    ema: float = 0.999
    batch: int = 128
    flip: bool = True
    pad: int = 4
    border: str = "reflect"
    cutout: int = 0
    updates: int = 1500
    fit_minutes: float = 0.0
    held_out: int = 1000
    check_every: int = 200
    check_images: int = 1000
    check_steps: int = 5
    check_eot: int = 4
    log_every: int = 50
    seed: int = 0
    bf16: bool = True
    graph: bool = _passing(True)
    compile: bool = _passing(False)
    copies: str = _passing("")
    every_s: float = _passing(60.0)

    def __post_init__(self) -> None:
        """Raises ValueError naming the field for settings that no run can have."""
        for name, known in (
            ("mode", MODES),
            ("loss", LOSSES),
            ("optimizer", tuple(OPTIMIZERS)),
            ("border", ("reflect", "zero")),
        ):
            _require(getattr(self, name) in known, f"{name} must be one of {', '.join(known)}")
        for name in ("sigma", "eps", "ramp", "smoothing", "warmup", "unroll_noise"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1]")
        for name in ("beta", "entropy", "purifier_lr", "images", "pad", "cutout", "fit_minutes"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative")
        for name in ("attack_steps", "batch", "held_out", "check_every", "check_images", "check_steps"):
            _require(getattr(self, name) >= 1, f"{name} must be 1 or more")
        for name in ("check_eot", "log_every", "updates", "purifier_blocks"):
            _require(getattr(self, name) >= 1, f"{name} must be 1 or more")
        for name in ("consistency", "denoise", "lr", "weight_decay"):
            value = getattr(self, name)
            _require(value >= 0 or value == -1, f"{name} must not be negative, or -1 for its own")
        _require(1 <= self.unroll <= 4, "unroll must lie in 1 to 4")
        _require(0 < self.unroll_step <= 1, "unroll_step must lie in (0, 1]")
        _require(0 <= self.ema < 1, "ema must lie in [0, 1)")
        _require(self.clip > 0, "clip must be positive")
        _require(
            self.loss != "trades" or (self.mode != "stability" and self.copies_a_loss == 1),
            "trades compares with the clean image: no mode stability and no consistency beside it",
        )
        _require(
            not (self.frozen_purifier and self.mode != "classifier"),
            "frozen_purifier belongs to mode classifier",
        )
        _require(self.purifies or self.unroll == 1, "unroll needs a purifier")

    @property
    def purifies(self) -> bool:
        """Whether there is a purifier before the classifier."""
        return self.mode != "classifier" or self.frozen_purifier

    @property
    def moves(self) -> tuple[str, ...]:
        """The parts whose weights change."""
        return {"both": ("purifier", "classifier"), "classifier": ("classifier",)}.get(
            self.mode, ("purifier",)
        )

    @property
    def learns_labels(self) -> bool:
        """Whether a classifier learns, which takes labels that somebody gave."""
        return bool(self.classifier) or self.fresh or "classifier" in self.moves

    @property
    def attacks(self) -> bool:
        return self.mode != "stability" and self.eps > 0

    @property
    def noises(self) -> int:
        """Noise images that one pass through the pipeline takes."""
        return self.unroll

    @property
    def weight_of_consistency(self) -> float:
        return self._own(self.consistency, 5.0)

    @property
    def weight_of_denoising(self) -> float:
        return self._own(self.denoise, 0.1) if self.purifies else 0.0

    @property
    def copies_a_loss(self) -> int:
        """Noisy copies of a batch in its loss."""
        return 2 if self.weight_of_consistency or self.entropy else 1

    @property
    def peak(self) -> float:
        return OPTIMIZERS[self.optimizer][0] if self.lr == -1 else self.lr

    @property
    def decay(self) -> float:
        return OPTIMIZERS[self.optimizer][1] if self.weight_decay == -1 else self.weight_decay

    def _own(self, value: float, of_stability: float) -> float:
        if value != -1:
            return value
        return of_stability if self.mode == "stability" else 0.0


def _require(good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(wanted)
