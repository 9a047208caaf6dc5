"""Two arms, or two runs, beside each other: what differs, and whether that is noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadtest.figures import AccuracyContrast, Contrast, FlagContrast, LatencyContrast, Sample
from loadtest.records import Record
from loadtest.statistics import fisher, mcnemar, quantile_difference
from loadtest.summary import QUANTILES, share

ALPHA = 0.05


def compare(first: Sequence[Sample], second: Sequence[Sample], *, paired: bool) -> Contrast:
    """Latency quantiles and accuracy by source of two arms; `noise` tells whether zero is plausible.

    Args:
        paired: both met the same images in the same order at the same times, or at least sets that have
            the same digest: then accuracy is compared image by image (McNemar), else by Fisher's test.
    """
    places, keys = _keyed(first), _keyed(second)
    common = [key for key in places if key in keys] if paired else []
    sources = list(dict.fromkeys(sample.source for sample in (*first, *second)))
    return Contrast(
        latency_ms={
            name: _latency(first, second, q, [(places[key], keys[key]) for key in common])
            for name, q in QUANTILES.items()
        },
        accuracy=[
            _accuracy(
                source,
                [sample for sample in first if sample.source == source],
                [sample for sample in second if sample.source == source],
                [(first[places[key]], second[keys[key]]) for key in common if key[0] == source],
            )
            for source in sources
        ],
    )


def flags(first: Sequence[Record], second: Sequence[Record]) -> list[FlagContrast]:
    """How often the score norm flagged each source's images, of those that were answered."""
    found = []
    for source in sorted({record.source for record in (*first, *second)}):
        both = [[r.verdict.flagged for r in rs if r.source == source and r.verdict] for rs in (first, second)]
        n, flagged = (len(both[0]), len(both[1])), (sum(both[0]), sum(both[1]))
        p = fisher(flagged, n) if all(n) else 1.0
        found.append(FlagContrast(source, n, (share(both[0]), share(both[1])), round(p, 5), p > ALPHA))
    return found


def _keyed(samples: Sequence[Sample]) -> dict[tuple[str, int, int], int]:
    """Where each image is, by source, row and how often it had come before."""
    seen: dict[tuple[str, int], int] = {}
    found = {}
    for place, sample in enumerate(samples):
        image = (sample.source, sample.row)
        found[*image, seen.get(image, 0)] = place
        seen[image] = seen.get(image, 0) + 1
    return found


def _latency(
    first: Sequence[Sample], second: Sequence[Sample], q: float, common: Sequence[tuple[int, int]]
) -> LatencyContrast:
    values = [
        np.array([np.inf if s.latency_ms is None else s.latency_ms for s in samples])
        for samples in (first, second)
    ]
    if common:
        values = [values[side][[pair[side] for pair in common]] for side in (0, 1)]
    found = quantile_difference(values[0], values[1], q, paired=bool(common))
    value, low, high = (v if v is None else round(v, 3) for v in (found.value, found.low, found.high))
    return LatencyContrast(value, low, high, found.is_noise)


def _accuracy(
    source: str,
    first: Sequence[Sample],
    second: Sequence[Sample],
    common: Sequence[tuple[Sample, Sample]],
) -> AccuracyContrast:
    """One source's accuracy in both, over common images where there are any."""
    alone: tuple[int, int] | tuple[None, None] = (None, None)
    if common:
        judged = [(a.right, b.right) for a, b in common if a.right is not None and b.right is not None]
        right = (sum(a for a, _ in judged), sum(b for _, b in judged))
        n = (len(judged), len(judged))
        alone = (sum(a and not b for a, b in judged), sum(b and not a for a, b in judged))
        test, p = "McNemar, exact", mcnemar(*alone)
    else:
        answers = [[s.right for s in samples if s.right is not None] for samples in (first, second)]
        right, n = (sum(answers[0]), sum(answers[1])), (len(answers[0]), len(answers[1]))
        test, p = "Fisher, exact", fisher(right, n) if all(n) else 1.0
    before, after = (round(r / m, 4) if m else None for r, m in zip(right, n, strict=True))
    return AccuracyContrast(source, n, (before, after), test, round(p, 5), p > ALPHA, *alone)
