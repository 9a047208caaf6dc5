"""What is said of an image in the end, to a caller of the library or, as JSON, of the server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from metastable.anomaly import prediction_shift
from metastable.bundle import Bundle
from metastable.engine.inspection import Raw
from metastable.engine.job import Answer
from metastable.errors import EngineFailure, InvalidOption


@dataclass(frozen=True)
class Verdict:
    """One image's label and what it rests on; `str` is one line for people.

    Attributes:
        label: index of the class, and `class_name` its name.
        probability: of that class.
        margin: how far it leads the runner-up in the mean over chains, in the units that the setting averages
            (logits, log-softmax or softmax), and `standard_error` of that; None from one chain.
        runner_up: name of the second class.
        setting: the setting that was asked.
        chains: that the answer is from, and `steps` the mean number of updates of each.
        decided: whether so many chains settle the label, at the error that the setting allows.
        late: whether the deadline cut it short: the best answer so far.
        score: the anomaly score of the image as it came, above `threshold` where it is `flagged`.
        shift: the prediction shift, from 0 to 1: how far the chains' probabilities are from what the
            classifier says of the image as it came (metastable.anomaly).  `shifted` is whether it lies above
            `shift_threshold`; both are None where the bundle has none for this setting.
        unpurified: what the classifier says of the image as it came, and `unpurified_name`.
        probabilities: of all classes, in the order of `classes`.
    """

    label: int
    class_name: str
    probability: float
    margin: float
    standard_error: float | None
    runner_up: str
    setting: str
    chains: int
    steps: float
    decided: bool
    late: bool
    score: float
    threshold: float
    flagged: bool
    shift: float
    shift_threshold: float | None
    shifted: bool | None
    unpurified: int
    unpurified_name: str
    probabilities: tuple[float, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    def top(self, count: int) -> list[tuple[int, str, float]]:
        """The `count` likeliest classes, all if there are fewer: index, name and probability.

        `label` is the first.  Raises InvalidOption for a negative count.
        """
        if count < 0:
            raise InvalidOption(f"a number of classes cannot be negative: {count}")
        order = sorted(range(len(self.classes)), key=lambda i: (i != self.label, -self.probabilities[i]))
        return [(i, self.classes[i], self.probabilities[i]) for i in order[:count]]

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        chains = f"{self.chains} chain{'' if self.chains == 1 else 's'} of {self.setting}"
        parts = [
            f"{self.class_name} {self.probability:.1%}",
            f"{self.margin:.2f}{error} ahead of {self.runner_up}",
            chains + (", decided" if self.decided else ""),
            *(["late"] if self.late else []),
            *([f"flagged: score {self.score:.3g} above {self.threshold:.3g}"] if self.flagged else []),
            *([f"flagged: shift {self.shift:.3g} above {self.shift_threshold:.3g}"] if self.shifted else []),
            *([f"unpurified: {self.unpurified_name}"] if self.unpurified != self.label else []),
        ]
        return "; ".join(parts)


def verdict_of(bundle: Bundle, answer: Answer, raw: Raw) -> Verdict:
    """The verdict on an image of a bundle with a calibration, from its chains and the look at it before.

    Raises EngineFailure for an anomaly score that is not a finite number.
    """
    if not math.isfinite(raw.score):
        raise EngineFailure("the anomaly score is not a finite number: the network that it is from is broken")
    assert bundle.anomaly is not None, "an inspector looked at the image"
    classes, result, decision = tuple(bundle.classes), answer.result, answer.decision
    probabilities = tuple(result.probabilities[0].tolist())
    error = decision.standard_error
    shift = prediction_shift(raw.probabilities, result.probabilities[0].cpu())
    limit = bundle.shifts.get(answer.job.setting.name)
    return Verdict(
        label=decision.label,
        class_name=classes[decision.label],
        probability=probabilities[decision.label],
        margin=decision.margin,
        standard_error=error if math.isfinite(error) else None,
        runner_up=classes[decision.runner_up],
        setting=answer.job.setting.name,
        chains=int(result.outputs.shape[1]),
        steps=float(result.steps.float().mean()),
        decided=decision.decided,
        late=answer.late,
        score=raw.score,
        threshold=bundle.anomaly.threshold,
        flagged=raw.flagged,
        shift=float(shift),
        shift_threshold=None if limit is None else limit.threshold,
        shifted=None if limit is None else bool(limit.flags(shift)),
        unpurified=raw.label,
        unpurified_name=classes[raw.label],
        probabilities=probabilities,
        classes=classes,
    )
