"""Settings: named latency/accuracy configurations of the defense, read from one YAML file.

    default: balanced
    caps: {chains: 256, steps: 2000}
    settings:
      none: {dynamics: none}
      fast: {dynamics: adp, network: score, chains: 8, steps: 2, sigma: 0.15, sigma_unflagged: 0.05}

A Setting checks itself; a file with an unknown key, a value out of range or more work than its
caps allow is refused as a whole with a SettingsError that names the setting and the field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from metastable.errors import SettingsError

Dynamics = Literal["none", "noise", "adp", "langevin", "malade", "reconstruction"]
Average = Literal["logits", "softmax", "log_softmax"]
Network = Literal["score", "energy", "short_run", "autoencoder", "purifier"]
NETWORKS: tuple[str, ...] = get_args(Network)
"""The purifying networks that a bundle may hold: a score network, an energy by maximum likelihood or
score matching, an energy that is not convergent (Mitchell 2020), MALADE's autoencoder, and a denoiser that
was trained through the classifier (metastable.training.harden), beside which `score` stays as it was."""
_LARGEST = 10**9  # of any number in a settings file
_DEEPEST = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration.  Lengths are in [0, 1] image units.

    Attributes:
        dynamics: `none` classifies the image as it is, `noise` adds Gaussian noise only; `adp`,
            `langevin`, `malade` and `reconstruction` purify (metastable.dynamics).
        network: which network of the bundle gives the score, of NETWORKS.
        chains: H, replicates of the image.
        steps: T, K or N, updates of each chain; of `reconstruction` how often it is rolled; 1 of `noise`.
        average: what is averaged over chains: `logits` (Hill 2021), `log_softmax` (the same label and
            probabilities: it differs by a number a chain), or `softmax` (ADP, eq. 13).
        sigma: the noise that `adp` and `noise` inject.
        sigma_unflagged: noise for images that the anomaly flag passes (ADP, Appendix F: 0.2
            sigma); None injects `sigma` always.
        step_fraction: ADP's lambda.
        step_bounds: least and greatest adaptive step size of ADP.
        stop: ADP's stopping threshold on |s(x)|.
        tau: Langevin step; Hill's 0.01 in [-1, 1] is 0.005 here.
        eta: factor of the Langevin noise (Hill 2021, eq. 13); 1 samples the energy's density.
        alpha: MALADE's step size, in squared [0, 1] units (eq. 10).
        kick: standard deviation of MALADE's noise, the paper's delta.
        walk: Langevin steps from noise to a reconstruction (Mitchell 2020, M of eq. 3.1).
        iterations: gradient steps of a reconstruction (eq. 3.2).
        rate: their size.
        delta: stop as soon as the label is settled at this error a request (metastable.stopping);
            None always spends all chains.
    """

    name: str
    dynamics: Dynamics
    network: Network = "score"
    chains: int = 1
    steps: int = 0
    average: Average = "logits"
    sigma: float = 0.0
    sigma_unflagged: float | None = None
    step_fraction: float = 0.05
    step_bounds: tuple[float, float] = (1e-5, 0.1)
    stop: float = 1e-3
    tau: float = 0.005
    eta: float = 1.0
    alpha: float = 0.01
    kick: float = 0.0
    walk: int = 15
    iterations: int = 240
    rate: float = 0.1
    delta: float | None = None

    def __post_init__(self) -> None:
        self._require(self.name.isidentifier() and self.name.isascii(), "name", "letters, digits and _")
        self._require(self.dynamics in get_args(Dynamics), "dynamics", f"one of {get_args(Dynamics)}")
        self._require(self.average in get_args(Average), "average", f"one of {get_args(Average)}")
        self._require(self.network in NETWORKS, "network", f"one of {NETWORKS}")
        self._require(_whole(self.chains) and self.chains >= 1, "chains", "a whole number from 1")
        least = 0 if self.dynamics == "none" else 1
        self._require(_whole(self.steps) and self.steps >= least, "steps", f"a whole number from {least}")
        self._require(self.dynamics != "noise" or self.steps == 1, "steps", "1, where there is only noise")
        self._require(_real(self.sigma) and 0 <= self.sigma <= 1, "sigma", "in [0, 1]")
        low = self.sigma_unflagged
        self._require(low is None or (_real(low) and 0 <= low <= 1), "sigma_unflagged", "in [0, 1]")
        self._require(_real(self.step_fraction) and 0 < self.step_fraction <= 1, "step_fraction", "in (0, 1]")
        bounds = self.step_bounds
        good = len(bounds) == 2 and all(map(_real, bounds)) and 0 < bounds[0] <= bounds[1] <= 10
        self._require(good, "step_bounds", "two numbers, 0 < least <= greatest <= 10")
        self._require(_real(self.stop) and self.stop >= 0, "stop", "not negative")
        self._require(_real(self.tau) and 0 < self.tau <= 1, "tau", "in (0, 1]")
        self._require(_real(self.eta) and 0 <= self.eta <= 100, "eta", "in [0, 100]")
        self._require(_real(self.alpha) and 0 < self.alpha <= 10, "alpha", "in (0, 10]")
        self._require(_real(self.kick) and 0 <= self.kick <= 1, "kick", "in [0, 1]")
        self._require(_whole(self.walk) and 1 <= self.walk <= 1000, "walk", "a whole number from 1 to 1000")
        bounded = _whole(self.iterations) and 1 <= self.iterations <= 10_000
        self._require(bounded, "iterations", "a whole number from 1 to 10000")
        self._require(_real(self.rate) and 0 < self.rate <= 10, "rate", "in (0, 10]")
        delta = self.delta
        self._require(delta is None or (_real(delta) and 0 < delta < 1), "delta", "in (0, 1)")

    def _require(self, good: bool, field: str, wanted: str) -> None:
        if not good:
            raise SettingsError(
                f"setting {_shown(self.name)}: {field} must be {wanted}, not {_shown(getattr(self, field))}"
            )

    @property
    def purifies(self) -> bool:
        """Whether chains are drawn at all."""
        return self.dynamics != "none"

    @property
    def scored(self) -> bool:
        """Whether the score of a network moves the chains."""
        return self.dynamics not in ("none", "noise")


@dataclass(frozen=True)
class Settings:
    """The settings of a server, the default one, and the caps that bound what a request may cost."""

    by_name: dict[str, Setting]
    default: str
    max_chains: int
    max_steps: int

    def __getitem__(self, name: str) -> Setting:
        return self.by_name[name]

    def digest(self) -> str:
        """SHA-256 of what the settings say, whatever file they came from."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.by_name)


def parse(text: str) -> Settings:
    """Settings from YAML text; raises SettingsError naming the first thing that is wrong."""
    try:
        _check_structure(text)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # of impossible dates, say
        raise SettingsError(f"the settings are not valid YAML: {error}") from None
    if not isinstance(raw, dict) or set(raw) != {"default", "caps", "settings"}:
        raise SettingsError("a settings file has exactly the keys default, caps and settings")
    caps = raw["caps"]
    if not isinstance(caps, dict) or set(caps) != {"chains", "steps"} or not all(map(_whole, caps.values())):
        raise SettingsError("caps needs whole numbers for exactly chains and steps")
    if not isinstance(raw["settings"], dict) or not raw["settings"]:
        raise SettingsError("settings must name at least one setting")
    by_name = {name: _setting(name, fields) for name, fields in raw["settings"].items()}
    for setting in by_name.values():
        if setting.chains > caps["chains"] or setting.steps > caps["steps"]:
            raise SettingsError(
                f"setting {setting.name!r} asks for {setting.chains} chains and {setting.steps} steps, "
                f"above the caps of {caps['chains']} and {caps['steps']}"
            )
    if not isinstance(raw["default"], str) or raw["default"] not in by_name:
        raise SettingsError(f"default names {_shown(raw['default'])}, which is no setting of this file")
    return Settings(by_name, raw["default"], caps["chains"], caps["steps"])


def load(path: Path) -> Settings:
    """Settings from a YAML file; raises SettingsError if it is missing or wrong."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def _check_structure(text: str) -> None:
    """SettingsError for YAML that takes more time or memory to read than its length suggests.

    A few lines of aliases to aliases stand for more values than any memory holds, and the time that
    PyYAML takes grows with the square of the nesting.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise SettingsError("a settings file must not use YAML's anchors and aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise SettingsError(f"a settings file must not be nested deeper than {_DEEPEST}")


def _setting(name: Any, fields: Any) -> Setting:
    known = {f.name for f in dataclasses.fields(Setting)} - {"name"}
    if not isinstance(name, str):
        raise SettingsError(f"the name of a setting must be text, not {_shown(name)}")
    if not isinstance(fields, dict) or "dynamics" not in fields:
        raise SettingsError(f"setting {name!r} must be a mapping with at least dynamics")
    if unknown := sorted(map(_shown, set(fields) - known)):
        raise SettingsError(f"setting {name!r} has unknown fields {unknown}; known are {sorted(known)}")
    fields = dict(fields)
    if "step_bounds" in fields:
        if not isinstance(fields["step_bounds"], list):
            raise SettingsError(f"setting {name!r}: step_bounds must be a list of two numbers")
        fields["step_bounds"] = tuple(fields["step_bounds"])
    return Setting(name=name, **fields)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _shown(value: object) -> str:
    """A value for an error message: short, whatever it is (a huge whole number has no repr at all)."""
    return "a huge number" if isinstance(value, int) and abs(value) > _LARGEST else reprlib.repr(value)
