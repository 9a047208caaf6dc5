"""Arms that the server assigned: one arm of the load test becomes several, as the answers say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from loadtest.arms import Arm, Block

NOBODYS = "no-arm"
"""The part of requests whose reply says no arm, or that got none."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def parts(arm: Arm, blocks: Sequence[Block]) -> list[tuple[Arm, list[Block]]]:
    """The arm and its blocks, or one arm `NAME.SERVERS` with its own exchanges for each of the server's.

    Where the server says arms, requests that got no reply are in none: they are a part of their own, so that
    they are not forgotten.
    """
    found = {_name(e.arm) for block in blocks for e in block.played.exchanges if e.number >= block.warmup}
    if found <= {NOBODYS}:
        return [(arm, list(blocks))]
    return [
        (dataclasses.replace(arm, name=f"{arm.name}.{name}"), [_of(block, arm, name) for block in blocks])
        for name in sorted(found, key=lambda name: (name == NOBODYS, name))
    ]


def _of(block: Block, arm: Arm, name: str) -> Block:
    its = [one for one in block.played.exchanges if _name(one.arm) == name]
    played = dataclasses.replace(block.played, exchanges=its)
    return dataclasses.replace(block, arm=f"{arm.name}.{name}", played=played)


def _name(said: str | None) -> str:
    """A server may say anything."""
    return said if said is not None and _NAME.fullmatch(said) else NOBODYS
