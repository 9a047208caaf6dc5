"""What a server says of one image, typed; docs/http-api.md explains every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metastable.client.fields import amount, items, name, number, text, truth, whole


@dataclass(frozen=True)
class Likely:
    """One of the classes listed."""

    label: int
    class_name: str
    probability: float


@dataclass(frozen=True)
class Margin:
    """How far the label leads `runner_up` in the mean over chains `of` what the setting averages.

    `standard_error` is None from one chain.
    """

    value: float
    standard_error: float | None
    of: str
    runner_up: str


@dataclass(frozen=True)
class Shift:
    """The prediction shift, in [0, 1]; all but `value` are None where the setting has no threshold for it."""

    value: float
    threshold: float | None
    false_positive_rate: float | None
    flagged: bool | None


@dataclass(frozen=True)
class Anomaly:
    """The score norm of the image as it came; `shift` is None from servers that do not say it."""

    score: float
    threshold: float
    false_positive_rate: float
    flagged: bool
    shift: Shift | None


@dataclass(frozen=True)
class Unpurified:
    """What the bare classifier says of the image as it came."""

    label: int
    class_name: str


@dataclass(frozen=True)
class Picture:
    """How the image was read; `original_size` is (width, height) as sent."""

    format: str
    original_size: tuple[int, int]
    resized: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Answer:
    """What is said of one image.

    Attributes:
        label, class_name: argmax of the mean over chains.
        top: the likeliest classes, the likeliest first.
        chains: that the answer rests on, and `steps` their mean.
        decided: whether so many chains settle the label at an error of `delta`.
        late: whether the deadline came first, and this is the best answer so far.
        timings_ms: by stage, `total` among them.
        request_id: by which the server's operator finds the request; empty where the server says none.
        arm: of the operator's split that the request is in; None where it is in none.
        flag_action: what the operator's rule made of a flagged image, `mark` or `stronger`; None without one.
        raw: the JSON itself, with fields that this version does not know.
    """

    label: int
    class_name: str
    top: tuple[Likely, ...]
    margin: Margin
    setting: str
    chains: int
    steps: float
    decided: bool
    delta: float | None
    late: bool
    unpurified: Unpurified
    anomaly: Anomaly
    image: Picture
    model: Model
    runner: str
    timings_ms: Mapping[str, float]
    request_id: str
    arm: str | None
    flag_action: str | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def flagged(self) -> bool:
        """Whether the anomaly score lies above its threshold."""
        return self.anomaly.flagged

    @classmethod
    def of(cls, said: Any) -> Answer:
        """The answer in a reply's JSON; ValueError for anything that is none."""
        try:
            return cls(
                label=whole(said["label"]),
                class_name=name(said["class"]),
                top=tuple(map(_likely, items(said["top"]))),
                margin=_margin(said["margin"]),
                setting=name(said["setting"]),
                chains=whole(said["chains"]),
                steps=amount(said["steps"]),
                decided=truth(said["decided"]),
                delta=_or_none(amount, said.get("delta")),
                late=truth(said["late"]),
                unpurified=Unpurified(whole(said["unpurified"]["label"]), name(said["unpurified"]["class"])),
                anomaly=_anomaly(said["anomaly"]),
                image=_picture(said["image"]),
                model=Model(*(name(said["model"][key]) for key in ("name", "version", "digest"))),
                runner=name(said["runner"]),
                timings_ms={name(stage): amount(ms) for stage, ms in said["timings_ms"].items()},
                request_id=name(said.get("request_id", "")),
                arm=_or_none(name, said.get("arm")),
                flag_action=name(said["flag_policy"]["action"]) if said.get("flag_policy") else None,
                raw=said,
            )
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"no verdict: {error!r}") from None


def _or_none(read: Any, value: Any) -> Any:
    return None if value is None else read(value)


def _likely(said: Any) -> Likely:
    return Likely(whole(said["label"]), name(said["class"]), amount(said["probability"]))


def _margin(said: Any) -> Margin:
    error = _or_none(amount, said["standard_error"])
    return Margin(number(said["value"]), error, name(said["of"]), name(said["runner_up"]))


def _anomaly(said: Any) -> Anomaly:
    return Anomaly(
        score=amount(said["score"]),
        threshold=number(said["threshold"]),
        false_positive_rate=amount(said["false_positive_rate"]),
        flagged=truth(said["flagged"]),
        shift=_or_none(_shift, said.get("shift")),
    )


def _shift(said: Any) -> Shift:
    return Shift(
        value=amount(said["value"]),
        threshold=_or_none(number, said["threshold"]),
        false_positive_rate=_or_none(amount, said["false_positive_rate"]),
        flagged=_or_none(truth, said["flagged"]),
    )


def _picture(said: Any) -> Picture:
    width, height = map(whole, items(said["original_size"]))
    return Picture(
        format=name(said["format"]),
        original_size=(width, height),
        resized=truth(said["resized"]),
        notes=tuple(map(text, items(said["notes"]))),
    )
