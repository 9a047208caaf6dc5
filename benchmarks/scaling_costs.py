"""What steps, classifications and looks cost on this machine, kept in a file for `scaling`.

They are what an engine measures of itself when it starts (`costs.measure`), several times over, and of every
size the least: beside other work a time can only grow.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.costs import CLASSIFY, LOOK, Costs, Work
from metastable.engine.inspection import Inspector
from metastable.engine.runners import Runner
from metastable.errors import DataError
from metastable.settings import Setting


@dataclass(frozen=True)
class Recorded:
    """A cost curve by the names of settings.

    Attributes:
        bundle, runner, machine: that it is of.
        rounds: measurements of which the least counts.
        curves: {CLASSIFY, LOOK or the name of a setting: {batch size: seconds}}; of a setting, seconds of one
            step of a batch of its chains.
    """

    bundle: str
    runner: str
    machine: str
    rounds: int
    curves: Mapping[str, Mapping[int, float]]

    def costs(self, settings: Iterable[Setting]) -> Costs:
        """As an engine has it, for these settings; a new one at every call, since engines change theirs.

        Raises DataError for a setting whose steps were not recorded.
        """
        curves: dict[Work, Mapping[int, float]] = {work: self.curves[work] for work in (CLASSIFY, LOOK)}
        for setting in settings:
            if (kind := setting.dynamics.kind) is not None:
                if setting.name not in self.curves:
                    raise DataError(f"the costs of setting {setting.name} are not recorded: record them anew")
                curves[kind] = self.curves[setting.name]
        return Costs(curves)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(path: Path) -> Recorded:
    """What `Recorded.write` wrote; DataError where there is nothing of the kind."""
    try:
        fields = json.loads(path.read_text())
        curves = {
            work: {int(n): float(s) for n, s in curve.items()} for work, curve in fields["curves"].items()
        }
        return Recorded(**fields | {"curves": curves})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} holds no recorded costs ({error}): make it with --record") from None


def record(
    bundle: Bundle, runner: Runner, settings: Sequence[Setting], rounds: int, *, name: str, machine: str
) -> Recorded:
    """Measure `rounds` times what chains of these settings cost, and keep the least of every size."""
    look = Inspector(bundle, runner)
    works: dict[Work, list[str]] = {CLASSIFY: [CLASSIFY], LOOK: [LOOK]}
    for setting in settings:
        if (kind := setting.dynamics.kind) is not None:
            works.setdefault(kind, []).append(setting.name)
    least: dict[str, dict[int, float]] = {key: {} for keys in works.values() for key in keys}
    for _ in range(rounds):
        found = assembly.measured(
            runner, settings, bundle.shape, sizes=assembly.SIZES, clock=time.perf_counter, look=look
        )
        for work, keys in works.items():
            for key in keys:
                for size in assembly.SIZES:
                    seconds = found.seconds(work, size)
                    least[key][size] = min(least[key].get(size, seconds), seconds)
    rounded = {key: {n: round(s, 6) for n, s in curve.items()} for key, curve in least.items()}
    return Recorded(bundle.name, name, machine, rounds, rounded)
