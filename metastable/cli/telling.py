"""A verdict for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def line(path: Path, verdict: dict[str, Any]) -> str:
    """What a server, or this process, says of an image, in one line."""
    likeliest = verdict["top"][0]
    flag = "flagged" if verdict["anomaly"]["flagged"] else "not flagged"
    rest = f"{verdict['chains']} chains of {verdict['setting']}, {flag}"
    bare = verdict["unpurified"]["class"]
    told = f", unpurified {bare}" if bare != verdict["class"] else ""
    return f"{path}: {verdict['class']} ({likeliest['probability']:.1%}; {rest}{told})"
