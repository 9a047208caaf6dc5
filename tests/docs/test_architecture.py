import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("grimp")


@pytest.fixture(scope="module")
def drawn(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", root / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_picture_shows_the_imports_and_they_point_down(
    drawn: ModuleType, root: Path, tmp_path: Path
) -> None:
    rows = drawn.layers(root)
    level = {room: at for at, row in enumerate(rows) for room in row}
    arrows = drawn.arrows(list(level))
    assert ("metastable.questions", "metastable.engine") in arrows
    # Implied by the way through the engine.
    assert ("metastable.library", "metastable.bundle") not in arrows
    # Rooms of one row that a colon joins may use each other.
    assert all(level[above] <= level[below] for above, below in arrows)
    drawn.draw(tmp_path / "a.png", root)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (root / "docs" / "architecture.png").is_file()


def test_the_page_has_every_room_and_every_room_is_there(drawn: ModuleType, root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text()
    table = page.split("## The rooms")[1].split("## Words")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {room.removeprefix("metastable.") for row in drawn.layers(root) for room in row} - {
        "__main__"
    }
