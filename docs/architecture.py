"""Draw docs/architecture.png: the rooms in the order that import-linter holds, and what imports what.

    .venv/bin/python docs/architecture.py

Nothing is placed by hand: layers come from pyproject.toml, arrows from the imports that grimp finds.
An arrow is left out where a longer way of arrows says the same.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import grimp
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the packages beside the library are not installed
LIBRARY = "metastable"
EVERYWHERE = {
    f"{LIBRARY}.{name}"
    for name in ("console", "errors", "version", "yaml_text", "reading", "pixels", "walk", "__main__")
}
"""No news in a picture."""


def layers(root: Path = ROOT) -> list[list[str]]:
    """Modules of each layer, from the top: front ends first, then the rooms of the library."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    front, inside = (one for one in contracts if one["type"] == "layers")
    above = [_names(line) for line in front["layers"]]
    rooms = [[f"{LIBRARY}.{name}" for name in _names(line)] for line in inside["layers"]]
    return [[name for name in line if name != LIBRARY] for line in above if line != [LIBRARY]] + rooms


def _names(line: str) -> list[str]:
    return re.split(r"\s*[|:]\s*", line.strip())


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """(importer, imported) of different rooms, without those that a longer way implies."""
    tops = sorted({room.split(".")[0] for room in rooms})
    graph = grimp.build_graph(*tops)
    home = {module: _home(module, rooms) for module in graph.modules}
    below: dict[str, set[str]] = {room: set() for room in rooms}
    for module, room in home.items():
        for imported in graph.find_modules_directly_imported_by(module):
            other = home.get(imported)
            if room and other and room != other:
                below[room].add(other)
    return {
        (room, other)
        for room, others in below.items()
        for other in others
        if not any(other in _reached(one, below) for one in others - {other})
    }


def _reached(room: str, below: dict[str, set[str]]) -> set[str]:
    """All rooms under a room; there are no circles, which a contract holds."""
    return below[room].union(*(_reached(one, below) for one in below[room]))


def _home(module: str, rooms: list[str]) -> str | None:
    return next((room for room in rooms if module == room or module.startswith(room + ".")), None)


def draw(path: Path, root: Path = ROOT) -> None:
    """A row a layer, and the arrows."""
    rows = [kept for row in layers(root) if (kept := [room for room in row if room not in EVERYWHERE])]
    rooms = [room for row in rows for room in row]
    widest = max(map(len, rows))
    place = {
        room: ((column + 0.5 + (widest - len(row)) / 2) * 2.4, -1.1 * level)
        for level, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    figure = Figure(figsize=(1.7 * widest + 1, 0.65 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots()
    boxes = {}
    for room, (x, y) in place.items():
        color = "#eef3f8" if room.startswith(LIBRARY + ".") else "#fbf1dd"
        box = {"boxstyle": "round,pad=0.4", "facecolor": color, "edgecolor": "#334455"}
        name = room.removeprefix(LIBRARY + ".")
        text = axes.text(x, y, name, ha="center", va="center", fontsize=10, bbox=box)
        boxes[room] = text.get_bbox_patch()
    for above, below in sorted(arrows(rooms)):
        bend = 0.1 if place[above][0] <= place[below][0] else -0.1
        style = {"arrowstyle": "-|>", "color": "#4477aa", "linewidth": 1.1, "shrinkA": 1, "shrinkB": 1}
        style |= {"connectionstyle": f"arc3,rad={bend}", "patchA": boxes[above], "patchB": boxes[below]}
        axes.annotate("", xy=place[below], xytext=place[above], arrowprops=style)
    axes.set_xlim(0, 2.4 * widest)
    axes.set_ylim(-1.1 * len(rows) + 0.3, 0.8)
    axes.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "architecture.png", help="the picture")
    draw(parser.parse_args().out)
