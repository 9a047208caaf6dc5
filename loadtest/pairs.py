"""Two arms, or two runs, beside each other: what differs, and whether that is noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.statistics import fisher, mcnemar, quantile_difference
from loadtest.summary import QUANTILES

Sample = Sequence[Any]
"""[source, row, latency in ms or None, right or None] of a request; None where it got no answer."""
ALPHA = 0.05


def compare(first: Sequence[Sample], second: Sequence[Sample], *, paired: bool) -> dict[str, Any]:
    """Latency quantiles and accuracy by source of two arms; `noise` tells whether zero is plausible.

    Args:
        paired: both met the same images in the same order at the same times, or at least sets that have
            the same digest: then accuracy is compared image by image (McNemar), else by Fisher's test.
    """
    places, keys = _keyed(first), _keyed(second)
    common = [key for key in places if key in keys] if paired else []
    sources = list(dict.fromkeys(str(sample[0]) for sample in (*first, *second)))
    return {
        "latency_ms": {
            name: _latency(first, second, q, [(places[key], keys[key]) for key in common])
            for name, q in QUANTILES.items()
        },
        "accuracy": [
            _accuracy(
                source,
                [sample for sample in first if sample[0] == source],
                [sample for sample in second if sample[0] == source],
                [(first[places[key]], second[keys[key]]) for key in common if key[0] == source],
            )
            for source in sources
        ],
    }


def _keyed(samples: Sequence[Sample]) -> dict[tuple[str, int, int], int]:
    """Where each image is, by source, row and how often it had come before."""
    seen: dict[tuple[str, int], int] = {}
    found = {}
    for place, sample in enumerate(samples):
        image = (str(sample[0]), int(sample[1]))
        found[*image, seen.get(image, 0)] = place
        seen[image] = seen.get(image, 0) + 1
    return found


def _latency(
    first: Sequence[Sample], second: Sequence[Sample], q: float, common: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    values = [np.array([np.inf if s[2] is None else s[2] for s in samples]) for samples in (first, second)]
    if common:
        values = [values[side][[pair[side] for pair in common]] for side in (0, 1)]
    found = quantile_difference(values[0], values[1], q, paired=bool(common))
    told = {name: v if v is None else round(v, 3) for name, v in dataclasses.asdict(found).items()}
    return {**told, "noise": found.is_noise}


def _accuracy(
    source: str,
    first: Sequence[Sample],
    second: Sequence[Sample],
    common: Sequence[tuple[Sample, Sample]],
) -> dict[str, Any]:
    """One source's accuracy in both, over common images where there are any."""
    if common:
        judged = [(a[3], b[3]) for a, b in common if a[3] is not None and b[3] is not None]
        right = (sum(a for a, _ in judged), sum(b for _, b in judged))
        n = (len(judged), len(judged))
        alone = (sum(a and not b for a, b in judged), sum(b and not a for a, b in judged))
        told: dict[str, Any] = {"only_first": alone[0], "only_second": alone[1], "test": "McNemar, exact"}
        p = mcnemar(*alone)
    else:
        answers = [[s[3] for s in samples if s[3] is not None] for samples in (first, second)]
        right, n = (sum(answers[0]), sum(answers[1])), (len(answers[0]), len(answers[1]))
        told, p = {"test": "Fisher, exact"}, fisher(right, n) if all(n) else 1.0
    shares = [round(r / m, 4) if m else None for r, m in zip(right, n, strict=True)]
    return {"source": source, "n": list(n), "accuracy": shares, **told, "p": round(p, 5), "noise": p > ALPHA}
