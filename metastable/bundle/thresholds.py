"""Calibrations as bundle.json has them, read and rendered."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import Any

from metastable.anomaly import Calibration, Threshold
from metastable.bundle import checks
from metastable.dynamics.base import NETWORKS


def rendered(calibration: Threshold) -> dict[str, Any]:
    """Its fields, without empty `changes`: calibrations on clean images read as they always have."""
    fields = dataclasses.asdict(calibration)
    return {key: value for key, value in fields.items() if key != "changes" or value}


def calibration(value: Any) -> Calibration:
    """That of the score norm; BundleError naming what is wrong in it."""
    if not isinstance(value, dict) or value.get("network") not in NETWORKS:
        checks.fail("anomaly", f"a mapping with network, one of {NETWORKS}")
    rest = {key: one for key, one in value.items() if key != "network"}
    found = threshold(rest, "anomaly", 1e9)
    return Calibration(network=value["network"], **{f.name: getattr(found, f.name) for f in fields(found)})


def threshold(value: Any, where: str, highest: float) -> Threshold:
    """The threshold of a statistic whose values are at most `highest`."""
    names = {f.name for f in fields(Threshold)}
    if not isinstance(value, dict) or "changes" not in value:
        names.remove("changes")
    found = checks.mapping(value, where, names)
    data = checks.table(found["data"], f"{where}.data", 16)
    quantiles = checks.table(found["quantiles"], f"{where}.quantiles", 64)
    n = checks.whole(found["n"], f"{where}.n", 1, 10**9)
    rate = checks.real(found["false_positive_rate"], f"{where}.false_positive_rate", 1e-9, 1 - 1e-9)
    return Threshold(
        threshold=checks.real(found["threshold"], f"{where}.threshold", 0, highest),
        false_positive_rate=rate,
        n=n,
        data={k: checks.text(v, f"{where}.data.{k}") for k, v in data.items()},
        quantiles={k: checks.real(v, f"{where}.quantiles.{k}", 0, highest) for k, v in quantiles.items()},
        changes=_changes(found["changes"], n, where) if "changes" in found else {},
    )


def _changes(value: Any, n: int, of: str) -> dict[str, int]:
    """Numbers of images by benign change, names of any release; together they are n."""
    where = f"{of}.changes"
    found = {
        checks.plain_name(k, f"a key of {where}"): checks.whole(v, f"{where}.{k}", 1, n)
        for k, v in checks.table(value, where, 64).items()
    }
    if sum(found.values()) != n:
        checks.fail(where, f"numbers of images that add up to {of}.n")
    return found
