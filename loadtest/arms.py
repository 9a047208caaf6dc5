"""Arms: what is compared, all of it under the same load and the same images, in turns."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from loadtest.client import Address, Played, play
from loadtest.items import Item
from loadtest.schedule import Load
from metastable.errors import MetastableError

MODEL = "metastable"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_KEYS = ("setting", "model", "version", "url", "deadline", "clients")


@dataclass(frozen=True)
class Arm:
    """One thing to compare; an empty setting is the server's default, or that of the server's own arms.

    `clients` is a header that names another client in every request.
    """

    name: str
    setting: str
    url: str
    model: str = MODEL
    version: str = ""
    deadline: str = ""
    clients: str = ""

    @property
    def target(self) -> Address:
        """The address of the model's predictions, and the options as headers."""
        path = "/".join(filter(None, (self.url.rstrip("/"), "predictions", self.model, self.version)))
        named = {"X-Metastable-Setting": self.setting, "X-Metastable-Deadline-Ms": self.deadline}
        return Address(path, {name: value for name, value in named.items() if value}, self.clients)


def parse_arm(text: str, url: str) -> Arm:
    """`fast` (a setting), or `new:setting=fast,version=2.0,url=http://127.0.0.1:9000`.

    Keys are setting, model, version, url (of the server), deadline (ms) and clients (a header that the server
    tells clients apart by); an arm without a setting has the server's default, or is split by the server.
    Raises MetastableError for anything else.
    """
    name, colon, rest = text.partition(":")
    if not _NAME.fullmatch(name):
        raise MetastableError(f"the arm {text!r} needs a name of letters, digits, _ . and -")
    if not colon:
        return Arm(name, name, url)
    values = {"url": url, "setting": ""}
    for pair in rest.split(","):
        key, equals, value = pair.partition("=")
        if key not in _KEYS or not equals or not value.isascii() or not value.isprintable():
            raise MetastableError(f"arm {name}: {pair!r} is not KEY=VALUE with a KEY of {_KEYS}")
        if key == "clients" and not _HEADER.fullmatch(value):
            raise MetastableError(f"arm {name}: clients must be the name of a header, not {value!r}")
        values[key] = value
    return Arm(name, **values)


@dataclass(frozen=True)
class Block:
    """One turn of one arm.

    Attributes:
        items: places in the run's items; the first `warmup` are sent but not measured.
        started: seconds after the run's start.
    """

    arm: str
    turn: int
    items: list[int]
    warmup: int
    started: float
    played: Played


def run(
    arms: Sequence[Arm], items: Sequence[Item], load: Load, *, rounds: int, warmup: int, seed: int
) -> list[Block]:
    """Play every arm once a round, in an order that rotates, on that round's part of the items.

    Arms of one round meet the same images at the same times.  Every block begins with `warmup` requests
    on the schedule, with images of another part, so that it is measured on a server under load.
    """
    if rounds < 1 or warmup < 0 or len(items) < rounds:
        raise MetastableError(
            f"rounds must be 1 to the number of images ({len(items)}) and --warmup not negative"
        )
    blocks: list[Block] = []
    parts = np.array_split(np.arange(len(items)), rounds)
    total = len(arms) * (len(items) + rounds * warmup)
    clock = asyncio.Runner()
    with clock, tqdm(total=total, desc="requests", mininterval=1) as bar:
        began = clock.get_loop().time()
        for turn, part in enumerate(parts):
            # Warm-up images come from the end of the list, backwards from this part: any will do.
            numbers = [int(part[0] - 1 - i) % len(items) for i in range(warmup)] + part.tolist()
            due = load.due(len(numbers), int(np.random.SeedSequence([seed, turn]).generate_state(1)[0]))
            chosen = [items[number] for number in numbers]
            for place in range(len(arms)):
                arm = arms[(place + turn) % len(arms)]
                bar.set_postfix_str(arm.name)
                started = clock.get_loop().time() - began
                played = clock.run(play(arm.target, chosen, load, due, bar.update))
                blocks.append(Block(arm.name, turn, numbers, warmup, started, played))
    return blocks
