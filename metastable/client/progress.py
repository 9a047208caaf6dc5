"""How far a client is with many images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

Progress: TypeAlias = Callable[[int, int], object] | Literal["bar"] | None
"""Called with how many are done and how many there are; or a bar, if tqdm is installed; or nothing."""
_PATIENCE = 2.0  # seconds before a bar is shown


@contextlib.contextmanager
def counted(progress: Progress, total: int) -> Iterator[Callable[[], object]]:
    """Gives what is to be called after every image."""
    if progress == "bar":
        with _bar(total) as update:
            yield update
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    yield tick


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=total, desc="images", delay=_PATIENCE) as bar:
        yield bar.update
