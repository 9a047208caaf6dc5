"""What a policy says, as values: arms and their split, the shadow, rules for flagged images."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metastable.errors import SettingsError
from metastable.serving.backends.base import Served

Action = Literal["answer", "mark", "refuse", "stronger"]
By = Literal["either", "score", "shift"]
_BITS = 64


@dataclass(frozen=True)
class Arm:
    """One of the settings that requests are split over.

    Attributes:
        weight: above 0; its share is that of the sum of all arms' weights.
        version: of the model; None for the default one.
    """

    name: str
    setting: str
    weight: float
    version: str | None = None


@dataclass(frozen=True)
class Split:
    """Requests that name no setting, over arms; one client stays in one arm.

    Attributes:
        header: whose value is the client's key where a trusted proxy sent it, in small letters; None
            for none.
        salt: secret.  Who knows it, and may choose his key, chooses his arm.
    """

    arms: tuple[Arm, ...]
    salt: bytes = field(repr=False)
    header: str | None = None

    def arm(self, key: str) -> Arm:
        """The arm of a client: the same one for the same key, salt and weights."""
        digest = hmac.digest(self.salt, key.encode("utf-8", "surrogateescape"), hashlib.sha256)
        point = int.from_bytes(digest[: _BITS // 8], "big") / 2**_BITS * sum(one.weight for one in self.arms)
        for one in self.arms[:-1]:
            if point < one.weight:
                return one
            point -= one.weight
        return self.arms[-1]


@dataclass(frozen=True)
class Shadow:
    """A second setting, asked about some of what was answered.

    Attributes:
        share: of the answered images, above 0 and up to 1.
        waiting: images that may wait for the engine to be idle.
        report: the file that says what was found; None for the metrics alone.
    """

    setting: str
    share: float
    waiting: int = 16
    report: Path | None = None


@dataclass(frozen=True)
class Rule:
    """What becomes of a flagged image.

    Attributes:
        by: the statistic whose flag counts.
        setting: that is asked where the action is `stronger`.
    """

    action: Action = "answer"
    by: By = "either"
    setting: str = ""

    def flags(self, body: Mapping[str, Any]) -> bool:
        """Whether it applies to a verdict (docs/http-api.md)."""
        score, shift = body["anomaly"]["flagged"], body["anomaly"]["shift"]["flagged"]
        return bool({"score": score, "shift": shift, "either": score or shift}[self.by])


@dataclass(frozen=True)
class Policy:
    """All of it; one without anything changes nothing.

    Attributes:
        version: of the model that answers; None for the first one.
        clients_may_name: settings; None for all.
        flags: rules by setting.
    """

    version: str | None = None
    clients_may_name: tuple[str, ...] | None = None
    split: Split | None = None
    shadow: Shadow | None = None
    flags: Mapping[str, Rule] = field(default_factory=dict)

    def rule(self, setting: str) -> Rule:
        """That of a setting."""
        return self.flags.get(setting, Rule())

    def check(self, served: Mapping[str, Served]) -> None:
        """SettingsError where it names a version that is not served, or a setting that one lacks.

        `served`: the models by version, that which answers without a policy first.
        """
        default = next(iter(served)) if self.version is None else self.version
        arms = () if self.split is None else self.split.arms
        wanted: list[tuple[str, str, tuple[str, ...]]] = [("version", default, ())]
        wanted += [("clients_may_name", default, self.clients_may_name or ())]
        wanted += [(f"split.arms.{one.name}", one.version or default, (one.setting,)) for one in arms]
        if self.shadow is not None:
            wanted += [("shadow", version, (self.shadow.setting,)) for version in served]
        for setting, rule in self.flags.items():
            having = [version for version, one in served.items() if setting in one.settings]
            to = (rule.setting,) if rule.action == "stronger" else ()
            wanted += [(f"flags.{setting}", version, to) for version in having]
            if not having:
                wanted.append((f"flags.{setting}", default, (setting,)))
        for where, version, settings in wanted:
            if version not in served:
                raise SettingsError(
                    f"the policy's {where} names version {version}, which is not loaded: use "
                    f"{', '.join(served)}, or load it with --also"
                )
            for setting in settings:
                if setting not in served[version].settings:
                    raise SettingsError(
                        f"the policy's {where} names setting {setting}, which version {version} does not "
                        f"have: use {', '.join(served[version].settings)}"
                    )
