"""Chains under way: their slots, their steps, their classification.

Knows which request a chain belongs to, and nothing of rounds, deadlines or admission.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metastable import cuda_noise
from metastable.defense import begin, mirrored
from metastable.dynamics.base import Kind
from metastable.engine.costs import CLASSIFY, Costs
from metastable.engine.job import ActiveJob, Finished
from metastable.engine.runners import Batch, Runner
from metastable.errors import EngineFailure
from metastable.noise import ChainKey

STEP = cuda_noise.FIELDS - 1  # the field of a packed key that counts steps
REDRAWN = 1 << 32
"""Added to the number of a chain that is drawn again: other noise, and as repeatable."""


class Chains:
    """A fixed number of slots, and the runner that advances what is in them.

    Args:
        slots: how many chains can be under way.
        shape: (C, H, W) of their states.
        clock: seconds; the times of batches are measured with it, and `costs` follows them.
    """

    def __init__(
        self,
        runner: Runner,
        costs: Costs,
        slots: int,
        shape: tuple[int, int, int],
        clock: Callable[[], float],
    ) -> None:
        self._runner, self._costs, self._shape, self._clock = runner, costs, shape, clock
        self._x = torch.zeros(slots, *shape, device=runner.abilities.device)
        # Beside the states, what a runner needs of each chain, put there when it starts: no batch has to make
        # tensors of its thousands anew, or send them.  Steps are counted here and there.
        self._packed = torch.zeros(cuda_noise.FIELDS, slots, dtype=torch.int64, device=self._x.device)
        self._held: dict[Kind, Tensor] = {}  # parameters, [width, slots]
        self._steps = torch.zeros(slots, dtype=torch.int64)
        self._key: list[ChainKey] = [(0, 0)] * slots
        self._owner: list[ActiveJob | None] = [None] * slots
        self._free = list(range(slots))
        self.steps_made = 0
        self.redrawn = 0

    @property
    def slots(self) -> int:
        return len(self._owner)

    @property
    def used(self) -> int:
        return len(self._owner) - len(self._free)

    def room(self, active: ActiveJob) -> int:
        """Slots that new chains of a request may take.

        A quarter is kept for requests that hold none, so that long chains cannot shut others out.
        """
        kept = len(self._owner) // 4 if active.slots else 0
        return max(len(self._free) - kept, 0)

    def owners(self, slots: Sequence[int]) -> list[ActiveJob]:
        """The requests that have chains in `slots`, each once; slots freed meanwhile have none."""
        found = {id(o): o for slot in slots if (o := self._owner[slot]) is not None}
        return list(found.values())

    def begin(self, active: ActiveJob, count: int) -> list[int]:
        """Start the next `count` chains of a request; returns their slots."""
        if not active.begun:
            now = self._clock()
            active.seconds["queue"] = now - active.arrived
            if (timeline := active.job.timeline) is not None:
                timeline.add("queue", active.arrived, now)
        slots = []
        first = active.job.first + active.begun
        for chain in range(first, first + count):
            slot = self._free.pop()
            self._owner[slot], self._key[slot] = active, (active.job.seed, chain)
            slots.append(slot)
        active.begun += count
        active.slots += slots
        self._place(active, slots)
        return slots

    def leave(self, active: ActiveJob) -> None:
        """Free all slots of a request."""
        self._give(active.slots)
        active.slots = []

    def walk(self, kind: Kind, slots: list[int], budget: float) -> tuple[list[int], list[ActiveJob]]:
        """Advance the chains in `slots` by as many steps as fit into `budget` seconds, at least one.

        Returns the slots of chains that have arrived, and requests with a chain that is broken.
        """
        size, rows = len(slots), torch.tensor(slots)
        owners = [self._owned(slot) for slot in slots]
        made, wanted = self._steps.index_select(0, rows), torch.tensor([o.steps for o in owners])
        turns = torch.tensor([o.turn for o in owners])
        left = int((torch.where(made < turns, turns, wanted) - made).min())
        steps = max(1, min(left, int(budget / self._costs.seconds(kind, size))))
        there = rows.to(self._x.device)
        batch = Batch(
            self._x.index_select(0, there),
            [self._key[slot] for slot in slots],
            made.tolist(),
            [o.parameters(step) for o, step in zip(owners, made.tolist(), strict=True)],
            self._packed.index_select(1, there),
            self._held[kind].index_select(1, there),
        )
        started = self._clock()
        x, moved = self._runner.advance(kind, batch, steps)
        spent = self._clock() - started
        self._costs.observe(kind, size, spent / steps)
        self.steps_made += steps * size
        self._x.index_copy_(0, there, x)
        self._steps.index_add_(0, rows, moved)
        self._packed[STEP].index_add_(0, there, moved.to(there.device))
        turned: dict[int, list[int]] = {}
        for row in ((made + moved == turns) & (turns < wanted)).nonzero().flatten().tolist():
            turned.setdefault(id(owners[row]), []).append(row)
        for one in turned.values():
            self._hold(owners[one[0]], [slots[row] for row in one], owners[one[0]].turn)
        for owner, count in Counter(owners).items():
            owner.charge("purify", spent * count / size)
            if (timeline := owner.job.timeline) is not None:
                timeline.add("purify", started, started + spent, chains=count, steps=steps)
        finite = x.flatten(1).isfinite().all(1).cpu()
        over = finite & ((made + moved >= wanted) | (moved < steps))
        broken = [
            active
            for row in (~finite).nonzero().flatten().tolist()
            for active in self._redraw(owners[row], slots[row])
        ]
        return [slots[row] for row in over.nonzero().flatten().tolist()], broken

    def classify(self, slots: list[int]) -> list[ActiveJob]:
        """Classify finished chains, give outputs and states to their requests, and free the slots.

        Returns the requests for which the classifier returned what is not a number.
        """
        size = len(slots)
        x = self._x.index_select(0, torch.tensor(slots, device=self._x.device))
        started = self._clock()
        odd = [self._owned(slot).job.setting.mirror and self._key[slot][1] % 2 == 1 for slot in slots]
        outputs = self._runner.classify(mirrored(x, odd)).float()
        spent = self._clock() - started
        self._costs.observe(CLASSIFY, size, spent)
        finite, made = outputs.isfinite().all(1).tolist(), self._steps[slots].tolist()
        broken = []
        for row, slot in enumerate(slots):
            owner = self._owned(slot)
            owner.charge("classify", spent / size)
            if finite[row]:
                chain = self._key[slot][1] % REDRAWN
                owner.finish(chain, Finished(outputs[row], x[row], made[row]))
            else:
                broken.append(owner)
        for owner in self.owners(slots):
            gone = set(slots)
            if (timeline := owner.job.timeline) is not None:
                count = len(gone.intersection(owner.slots))
                timeline.add("classify", started, started + spent, chains=count)
            owner.slots = [slot for slot in owner.slots if slot not in gone]
        self._give(slots)
        return broken

    def _place(self, active: ActiveJob, slots: list[int]) -> None:
        """Put the starting states of a request's chains into their slots."""
        device, keys = self._x.device, [self._key[slot] for slot in slots]
        self._packed[:, slots] = cuda_noise.pack(keys, [0] * len(slots)).to(device)
        self._steps[slots] = 0
        if (kind := active.kind) is not None:
            if kind not in self._held:
                self._held[kind] = torch.zeros(len(kind.probe), len(self._owner), device=device)
            self._hold(active, slots, 0)
        x = active.job.image.to(device).expand(len(slots), *self._shape)
        x = begin(x, keys, active.job.setting.dynamics, [active.job.flagged] * len(slots))
        self._x[slots] = x

    def _hold(self, active: ActiveJob, slots: list[int], step: int) -> None:
        """Put the parameters of a request's chains that have made so many steps beside their states."""
        assert active.kind is not None, "chains that go nowhere have no parameters"
        row = torch.tensor(active.parameters(step), device=self._x.device)
        self._held[active.kind][:, slots] = row[:, None]

    def _owned(self, slot: int) -> ActiveJob:
        owner = self._owner[slot]
        assert owner is not None, "a chain that is under way has an owner"
        return owner

    def _redraw(self, active: ActiveJob, slot: int) -> list[ActiveJob]:
        """Start a chain again with other noise, once; the second time its request is broken."""
        seed, chain = self._key[slot]
        if chain >= REDRAWN:
            return [active]
        self.redrawn += 1
        active.redrawn += 1
        self._key[slot] = (seed, chain + REDRAWN)
        self._place(active, [slot])
        return []

    def _give(self, slots: list[int]) -> None:
        """Free slots; their keys hold secret seeds and are forgotten."""
        for slot in slots:
            self._owner[slot], self._key[slot] = None, (0, 0)
        self._packed[:, slots] = 0
        self._free += slots


def broken(what: str, cause: Exception | None = None) -> EngineFailure:
    """A new error object for one request, with the cause that it may share with others."""
    error = EngineFailure(what)
    error.__cause__ = cause
    return error
