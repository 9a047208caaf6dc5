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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from metastable import yaml_text
from metastable.dynamics.base import Dynamics, real, shown, whole
from metastable.dynamics.table import DYNAMICS
from metastable.errors import SettingsError

Average = Literal["logits", "softmax", "log_softmax"]
_DEEPEST = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration: a dynamics with its parameters, and what is made of its chains.

    Attributes:
        dynamics: how chains move (metastable.dynamics).
        chains: H, replicates of the image.
        average: what is averaged over chains: `logits` (Hill 2021), `log_softmax` (the same label and
            probabilities: it differs by a number a chain), or `softmax` (ADP, eq. 13).
        delta: stop as soon as the label is settled at this error a request (metastable.stopping);
            None always spends all chains.
        mirror: classify the mirror image of every second chain, where the classifier itself looks at one
            view: the same mean as if each chain were classified twice, for the price of once.
    """

    name: str
    dynamics: Dynamics
    chains: int = 1
    average: Average = "logits"
    delta: float | None = None
    mirror: bool = False

    def __post_init__(self) -> None:
        self._require(self.name.isidentifier() and self.name.isascii(), "name", "letters, digits and _")
        self._require(self.average in get_args(Average), "average", f"one of {get_args(Average)}")
        self._require(whole(self.chains) and self.chains >= 1, "chains", "a whole number from 1")
        delta = self.delta
        self._require(delta is None or (real(delta) and 0 < delta < 1), "delta", "in (0, 1)")
        self._require(isinstance(self.mirror, bool), "mirror", "true or false")

    @classmethod
    def of(cls, name: str, dynamics: str, /, **fields: Any) -> Setting:
        """The setting that a file's fields describe: its own, and those of its dynamics.

        Raises SettingsError, which names the setting and the field, for a dynamics that there is not, a field
        that it does not read, or a value that it cannot have.
        """
        if not isinstance(dynamics, str) or dynamics not in DYNAMICS:
            raise SettingsError(
                f"setting {shown(name)}: dynamics must be one of {tuple(DYNAMICS)}, not {shown(dynamics)}"
            )
        kind = DYNAMICS[dynamics]
        read = {field.name for field in dataclasses.fields(kind)}
        own = OWN if kind.random else OWN - OF_MANY
        if unread := set(fields) - read - own:
            raise SettingsError(
                f"setting {shown(name)} names {', '.join(sorted(map(shown, unread)))}, which {dynamics} does "
                f"not read: it reads {', '.join(sorted(read | own))}"
            )
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        if missing := sorted(needed - set(fields)):
            raise SettingsError(
                f"setting {shown(name)} needs the fields {', '.join(missing)} for dynamics {dynamics}"
            )
        try:
            moves = kind(**{key: value for key, value in fields.items() if key in read})
        except SettingsError as error:
            raise SettingsError(f"setting {shown(name)}: {error}") from None
        return cls(name=name, dynamics=moves, **{k: v for k, v in fields.items() if k not in read})

    def fields(self) -> dict[str, Any]:
        """What `of` takes beside name and dynamics, but for fields that have their defaults."""
        return _changed(self.dynamics) | {k: v for k, v in _changed(self).items() if k in OWN}

    def moving(self, **fields: Any) -> Setting:
        """This setting with other parameters of its dynamics."""
        return dataclasses.replace(self, dynamics=dataclasses.replace(self.dynamics, **fields))

    def _require(self, good: bool, field: str, wanted: str) -> None:
        if not good:
            raise SettingsError(
                f"setting {shown(self.name)}: {field} must be {wanted}, not {shown(getattr(self, field))}"
            )

    @property
    def steps(self) -> int:
        """T, K or N, updates of each chain."""
        return self.dynamics.steps

    @property
    def network(self) -> str:
        """The network of the bundle that moves the chains; empty where none does."""
        return self.dynamics.network

    @property
    def purifies(self) -> bool:
        """Whether anything is done to the image."""
        return self.dynamics.purifies

    @property
    def random(self) -> bool:
        """Whether chains differ."""
        return self.dynamics.random

    @property
    def most_chains(self) -> int:
        """Chains that a request can cost: one where they do not differ."""
        return self.chains if self.random else 1


OWN = {"chains", "average", "delta", "mirror"}
"""The fields of a setting itself, whatever its dynamics."""
OF_MANY = {"chains", "delta", "mirror"}
"""Those that say something only where chains differ."""


def _changed(one: Any) -> dict[str, Any]:
    fields = dataclasses.fields(one)
    return {f.name: getattr(one, f.name) for f in fields if getattr(one, f.name) != f.default}


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
        raw = yaml_text.read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"the settings are not valid YAML: {yaml_text.one_line(error)}") from None
    if not isinstance(raw, dict) or set(raw) != {"default", "caps", "settings"}:
        raise SettingsError("a settings file has exactly the keys default, caps and settings")
    caps = raw["caps"]
    if not isinstance(caps, dict) or set(caps) != {"chains", "steps"} or not all(map(whole, caps.values())):
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
        raise SettingsError(f"default names {shown(raw['default'])}, which is no setting of this file")
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
    if not isinstance(name, str):
        raise SettingsError(f"the name of a setting must be text, not {shown(name)}")
    if not isinstance(fields, dict) or "dynamics" not in fields:
        raise SettingsError(f"setting {name!r} must be a mapping with at least dynamics")
    if strange := sorted(shown(key) for key in fields if not isinstance(key, str)):
        raise SettingsError(f"setting {name!r} has fields whose names are no text: {strange}")
    return Setting.of(name, fields["dynamics"], **{k: v for k, v in fields.items() if k != "dynamics"})
