"""Who is let in, before anything is paid for them.

    with engine.admit(setting) as permit:   # or it says when to try again
        image = decode(...)                 # what goes wrong here gives the permit back
        engine.submit(job, permit)          # from here on the job's end gives it back

Decoding an image, scoring it and classifying it as it came cost as much as a cheap setting's whole answer.
So a request is priced and takes its place first: a server that has too much work refuses at once.
"""

from __future__ import annotations

import threading
from types import TracebackType

from metastable.engine.costs import CLASSIFY, LOOK, Costs
from metastable.errors import Draining, Overloaded
from metastable.settings import Setting

FOLLOW = 0.1  # weight of a new observation of what a setting needs
BOUNDS = (0.01, 20.0)  # what a setting was seen to need, in units of what it needs by the cost curve
CROWD = 7.5
"""Times the backlog that all jobs may come to, each counted with one backlog at most."""


class Line:
    """What is known of a setting.

    Attributes:
        listed: seconds that a job of it needs, by the cost curve when it was first asked for.
        price: those that it is expected to need, by what others needed lately.
        left: seconds of expected work of its jobs, and `counted`, with one backlog a job at most.
    """

    __slots__ = ("counted", "left", "listed", "price")

    def __init__(self, listed: float) -> None:
        self.listed = self.price = listed
        self.left = self.counted = 0.0


class Permit:
    """Room for one job: what it is expected to need counts as work that waits until it is given back.

    Attributes:
        setting: of the job.
        served: seconds of the machine that it has got so far.
    """

    def __init__(self, admission: Admission, setting: Setting, line: Line) -> None:
        self._admission, self.setting, self.line = admission, setting, line
        self.served = 0.0
        self.taken = False

    @property
    def price(self) -> float:
        """Seconds that a job of its setting is expected to need, as of now."""
        return self.line.price

    @property
    def left(self) -> float:
        """Seconds of expected work that is left: of the price, which doubles each time that it is used up."""
        expected = self.line.price
        while expected <= self.served:
            expected *= 2
        return expected - self.served

    def charge(self, seconds: float) -> None:
        """Its job got `seconds` of the machine."""
        self._admission.charge(self, seconds)

    def release(self) -> None:
        """Give it back, if no job has taken it over; once or many times."""
        self._admission.release(self)

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """Prices settings, gives permits, and knows how much work they stand for.  Any thread may call it.

    All permits of a setting have its price of the moment: were it the one of their time, a price that falls
    would put those that wait behind all that come.

    Args:
        costs: the runner's cost curve, as it is when a setting is first asked for.
        backlog: seconds of expected work that a job may have before it; one that would have more is refused.
            What goes before it is what costs no more (`policy`): a cheap job gets in where dear ones wait.
        jobs: permits that may be out.
        few: permits that may be out whatever they cost: prices that were measured beside other work are too
            high, and must not close the door to a handful of requests.
    """

    def __init__(self, costs: Costs, *, backlog: float, jobs: int, few: int = 1) -> None:
        self._costs, self._most, self._jobs, self._few = costs, backlog, jobs, few
        self._lines: dict[Setting, Line] = {}
        self._out: set[Permit] = set()
        self._fresh = True  # whether the lines' sums are
        self._draining = False
        self._lock = threading.RLock()

    def admit(self, setting: Setting) -> Permit:
        """A permit, at once.

        Raises:
            ValueError: the cost of this setting is not known: the engine was made for others.
            Draining: no more work is taken on.
            Overloaded: too much work is waiting; says after how many seconds to try again.
        """
        with self._lock:
            line = self._line(setting)
            if self._draining:
                raise Draining("the server is stopping: send the request to another one")
            self._sum()
            before = sum(one.left for one in self._lines.values() if one.price <= line.price)
            crowd = sum(one.counted for one in self._lines.values())
            over = max(before - self._most, crowd - CROWD * self._most)
            if over > 0 and len(self._out) >= self._few:
                raise Overloaded(
                    f"the server has {before:.1f} s of work to do before yours, and {self.backlog:.1f} s in "
                    f"all: try again in {over:.1f} s, or choose a cheaper setting",
                    over,
                )
            if len(self._out) >= self._jobs:
                wait = self.backlog / len(self._out)
                raise Overloaded(f"the server holds {len(self._out)} jobs, and no more: try again soon", wait)
            permit = Permit(self, setting, line)
            self._out.add(permit)
            self._count(permit)
        return permit

    def price(self, setting: Setting) -> float:
        """Seconds of the machine that a job of this setting is expected to need.

        The look at its image counts where costs have one.  Raises ValueError where its cost is not known.
        """
        with self._lock:
            return self._line(setting).price

    def take(self, permit: Permit, setting: Setting) -> None:
        """A job of `setting` takes a permit over; `end` gives it back.

        Raises ValueError for one that was given back, or is of another job or setting.
        """
        with self._lock:
            if permit not in self._out or permit.taken:
                raise ValueError("the permit was given back, or another job has it: admit the job again")
            if permit.setting != setting:
                raise ValueError(f"the permit is for setting {permit.setting.name}, not {setting.name}")
            permit.taken = True

    def charge(self, permit: Permit, seconds: float) -> None:
        """The job of a permit got `seconds` of the machine."""
        with self._lock:
            permit.served += seconds
            self._fresh = False

    def end(self, permit: Permit, *, whole: bool) -> None:
        """The job that has the permit has ended, with a whole answer or not.

        Prices of its setting follow what it needed: fewer chains where the label was settled early, more time
        a chain where batches were small.  One that was cut off tells that this was not enough.
        """
        with self._lock:
            line = permit.line
            seen = min(max(permit.served, BOUNDS[0] * line.listed), BOUNDS[1] * line.listed)
            if whole or seen > line.price:
                line.price = (1 - FOLLOW) * line.price + FOLLOW * seen
            self._give_back(permit)

    def release(self, permit: Permit) -> None:
        """Take back a permit that no job has taken over; nothing for others."""
        with self._lock:
            if not permit.taken:
                self._give_back(permit)

    def drain(self) -> None:
        """Admit nobody from now on."""
        with self._lock:
            self._draining = True

    @property
    def backlog(self) -> float:
        """Seconds of expected work that is left to do."""
        with self._lock:
            self._sum()
            return sum(one.left for one in self._lines.values())

    @property
    def out(self) -> int:
        """Permits that have not come back."""
        return len(self._out)

    def _give_back(self, permit: Permit) -> None:
        self._out.discard(permit)
        self._fresh = False

    def _sum(self) -> None:
        """Sum up the lines anew where something has changed.

        That is once a segment: a refusal costs no more for the permits that are out.
        """
        if not self._fresh:
            for line in self._lines.values():
                line.left = line.counted = 0.0
            for permit in self._out:
                self._count(permit)
            self._fresh = True

    def _count(self, permit: Permit) -> None:
        left = permit.left
        permit.line.left += left
        permit.line.counted += min(left, self._most)

    def _line(self, setting: Setting) -> Line:
        if (line := self._lines.get(setting)) is None:
            line = self._lines[setting] = Line(self._by_curve(setting))
        return line

    def _by_curve(self, setting: Setting) -> float:
        kind = setting.dynamics.kind
        if not all(work in self._costs for work in (CLASSIFY, *([] if kind is None else [kind]))):
            raise ValueError(f"this engine was not made for setting {setting.name}: its cost is not known")
        classify = self._costs.unit(CLASSIFY)
        look = self._costs.unit(LOOK) if LOOK in self._costs else 0.0
        if kind is None:
            return look + classify
        return look + setting.chains * (setting.steps * self._costs.unit(kind) + classify)
