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
BOUNDS = (0.05, 20.0)  # what a setting was seen to need, in units of what it needs by the cost curve


class Permit:
    """Room for one job: its price counts as work that waits until it is given back.

    Attributes:
        setting: of the job.
        listed: seconds of the machine that its setting needs by the cost curve.
        price: those that it is expected to need, by what others of its setting needed.
        served: seconds that it has got so far.
        expected: the price, doubled each time that it is used up.
    """

    def __init__(self, admission: Admission, setting: Setting, listed: float, price: float) -> None:
        self._admission, self.setting, self.listed, self.price = admission, setting, listed, price
        self.served, self.expected = 0.0, price
        self.taken = False

    @property
    def left(self) -> float:
        """Seconds of expected work that is left to do."""
        return self.expected - self.served

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

    Args:
        costs: the runner's cost curve.
        backlog: seconds of expected work that a job may have before it; one that would have more is refused.
            What goes before it is what ends sooner (`policy`): a cheap job gets in where dear ones wait.
        jobs: permits that may be out.
    """

    def __init__(self, costs: Costs, *, backlog: float, jobs: int) -> None:
        self._costs, self._most, self._jobs = costs, backlog, jobs
        self._ratios: dict[str, float] = {}  # what a setting's requests needed lately, to what they should
        self._out: set[Permit] = set()
        self._left = 0.0  # of all that are out; a sum at every admission would grow with their square
        self._draining = False
        self._lock = threading.Lock()

    def admit(self, setting: Setting) -> Permit:
        """A permit, at once.

        Raises:
            ValueError: the cost of this setting is not known: the engine was made for others.
            Draining: no more work is taken on.
            Overloaded: too much work is waiting; says after how many seconds to try again.
        """
        listed = self._listed(setting)
        permit = Permit(self, setting, listed, listed * self._ratios.get(setting.name, 1.0))
        with self._lock:
            if self._draining:
                raise Draining("the server is stopping: send the request to another one")
            before = sum(one.left for one in self._out if one.left <= permit.price)
            over = before - self._most
            if over > 0 or len(self._out) >= self._jobs:
                wait = over if over > 0 else self._left / len(self._out)
                raise Overloaded(
                    f"the server has {before:.1f} s of work to do before yours: try again in {wait:.1f} s, "
                    "or choose a cheaper setting",
                    wait,
                )
            self._out.add(permit)
            self._left += permit.left
        return permit

    def price(self, setting: Setting) -> float:
        """Seconds of the machine that a job of this setting is expected to need.

        The look at its image counts where costs have one.  Raises ValueError where its cost is not known.
        """
        return self._listed(setting) * self._ratios.get(setting.name, 1.0)

    def learn(self, permit: Permit) -> None:
        """The job of a permit has come to its answer: prices of its setting follow what it needed.

        Fewer chains, where the label was settled early; more time a chain, where batches were small.
        """
        name = permit.setting.name
        ratio = min(max(permit.served / permit.listed, BOUNDS[0]), BOUNDS[1])
        self._ratios[name] = (1 - FOLLOW) * self._ratios.get(name, 1.0) + FOLLOW * ratio

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
            before = permit.left
            permit.served += seconds
            while permit.served >= permit.expected:
                permit.expected *= 2
            if permit in self._out:
                self._left += permit.left - before

    def end(self, permit: Permit) -> None:
        """The job that has the permit has ended."""
        with self._lock:
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
        return max(self._left, 0.0)

    @property
    def out(self) -> int:
        """Permits that have not come back."""
        return len(self._out)

    def _give_back(self, permit: Permit) -> None:
        if permit in self._out:
            self._out.remove(permit)
            # Sums of floats drift: nothing is left when nobody is.
            self._left = self._left - permit.left if self._out else 0.0

    def _listed(self, setting: Setting) -> float:
        kind = setting.dynamics.kind
        if not all(work in self._costs for work in (CLASSIFY, *([] if kind is None else [kind]))):
            raise ValueError(f"this engine was not made for setting {setting.name}: its cost is not known")
        classify = self._costs.unit(CLASSIFY)
        look = self._costs.unit(LOOK) if LOOK in self._costs else 0.0
        if kind is None:
            return look + classify
        return look + setting.chains * (setting.steps * self._costs.unit(kind) + classify)
