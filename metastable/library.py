"""The library's front door: a bundle by name, images in, verdicts out.

import metastable

with metastable.load("cifar10") as defense:
    for verdict in defense(["samples/cat.png"], setting="fast"):
        print(verdict)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from metastable import bundle as bundles
from metastable.batches import Images, gathered
from metastable.bundle import Bundle, shipped
from metastable.engine import assembly
from metastable.engine.admission import Permit
from metastable.engine.costs import CLASSIFY, Costs
from metastable.engine.driver import Driver
from metastable.engine.engine import Engine
from metastable.engine.inspection import Inspector, Raw
from metastable.engine.job import Answer
from metastable.engine.runners import Runner, cards, choose
from metastable.engine.runners.artifacts import Artifacts
from metastable.engine.verdict import Verdict, verdict_of
from metastable.errors import EngineFailure, InvalidOption
from metastable.pixels import at_most
from metastable.questions import (
    Question,
    cared_for,
    check_names,
    in_time,
    late_is_said,
    left,
    question_of,
    setting_of,
    terms_of,
)
from metastable.settings import Setting

__all__ = ["Defense", "Verdict", "load"]

log = logging.getLogger("metastable")

MOST_THREADS = 4096
PIECE, PIECE_PIXELS = 64, 2**16
"""Images that are looked at in one go, and their pixels, so that others' chains do not wait for thousands."""


def load(
    bundle: str | os.PathLike[str],
    *,
    runner: str = choose.AUTO,
    threads: int = 0,
    artifacts: str | os.PathLike[str] | None = None,
    settings: Iterable[str] = (),
) -> Defense:
    """A bundle, ready to judge images.

    >>> import metastable
    >>> defense = metastable.load("cifar10")
    >>> [verdict] = defense(["samples/cat.png"], setting="fast")
    >>> verdict.class_name
    'cat'
    >>> defense.close()

    Args:
        bundle: the name of a bundle that comes with the project, or the path of a bundle's folder (a text
            with a separator in it, as in `./mine`, is a path).
        runner: what computes, one of `metastable.engine.runners.choose.MAKERS`; `auto` is the fastest with
            float32 answers that is there: a GPU, or of PyTorch and the runtimes that have artifacts.
        threads: of the runner, for which PyTorch's number is set in the whole process; 0 takes all cores.
        artifacts: folder of what `metastable export all` made of this bundle, for runners on ONNX Runtime,
            OpenVINO and AOTInductor.
        settings: to make ready now, beside the default one.  Any other is made ready when it is first asked
            for, which takes from a second to a minute and counts against the deadline.

    What was loaded is logged to `metastable`, at level INFO.

    Raises:
        BundleError: there is no such bundle, it is damaged, or has no anomaly calibration; or an artifact is
            missing, damaged, or of other weights.
        SettingsError: there is no such runner.
        MissingPackage: the runner's runtime is not installed, or it lacks a GPU or its artifacts.
        InvalidOption: a setting that the bundle does not have, or a number of threads that no machine has.
        EngineFailure: no runner can run this bundle.
    """
    if type(threads) is not int or not 0 <= threads <= MOST_THREADS:
        raise InvalidOption(f"threads must be 0, for all cores, or up to {MOST_THREADS}, not {threads!r}")
    check_names(bundle, settings)
    kind = choose.artifact_of(runner)
    loaded = bundles.load(shipped.folder(bundle))
    wanted = [loaded.settings.default, *settings]
    for name in wanted:
        setting_of(loaded, name)
    exported: Artifacts = {}
    if artifacts is not None and kind is not None:
        files = cards.packed(Path(artifacts) / kind, kind, loaded.parts, cards.versions_here(kind))
        exported = {kind: {Path(name).stem: data for name, data in files.items()}}
    if threads:
        torch.set_num_threads(threads)
    made = assembly.runner_for(loaded, runner, artifacts=exported, threads=threads)
    defense = Defense(loaded, made)
    defense.prepare(*wanted)
    log.info("loaded %s", defense)
    return defense


class Defense:
    """Judges images with one bundle on one runner; `load` makes it.

    Call it, or await `ask`, from any number of threads and tasks: their chains share batches.  Its engine has
    a thread of its own, which `close`, or leaving a `with` block, ends.

    Args:
        bundle: with an anomaly calibration; its settings are made ready by `prepare`.
        runner: made for this bundle; it belongs to the defense from now on.

    Raises BundleError if the bundle has no calibration.
    """

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        self.bundle = bundle
        self.runner = runner.name
        self._made, self._costs = runner, Costs({})
        self._inspector = Inspector(bundle, runner)
        limits = assembly.wide(runner)
        engine = Engine(runner, self._costs, bundle.shape, time.perf_counter, limits)
        self._driver = Driver(engine, closed="this defense is closed: load the bundle again")
        self._ids = itertools.count()
        # Nobody is left to ask when this runs, so nothing is waited for.
        self._end = weakref.finalize(self, self._driver.close, 0.0)

    def __call__(
        self,
        images: Images,
        *,
        setting: str | None = None,
        deadline: float | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Verdict]:
        """A verdict for each image, in order.

        Args:
            images: floats [N, C, H, W] in [0, 1] as a tensor or an array; or a list of PNG, JPEG, WebP or
                .npy files, by path or as bytes.
            setting: one of `settings`; None is the bundle's default.
            deadline: seconds from now after which an image gets the best answer so far, with `late` true.
            seeds: of the chains, one an image, in [0, 2^128); None draws secret ones.  The same seeds give
                the same verdicts, up to float rounding.  Whoever knows the seeds can aim at one fixed path:
                give none where images may be attacked.

        Raises:
            InvalidImage, UnsupportedImage, TooLarge, MalformedRequest: what is wrong with the images
                (`metastable.batches`).
            InvalidOption: an unknown setting, a deadline or a seed outside its range.
            DeadlineExceeded: an image had no answer at all in time.
            EngineFailure: a network failed, or gave what is no number.
            Draining: the defense is closed.
        """
        asked = self.purify(images, setting=setting, deadline=deadline, seeds=seeds)
        return [verdict for verdict, _ in asked]

    def purify(
        self,
        images: Images,
        *,
        setting: str | None = None,
        deadline: float | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[tuple[Verdict, Tensor]]:
        """The same with the purified images: float32 [C, H, W], the mean over the chains of each.

        Chains may leave [0, 1].
        """
        terms = terms_of(self.bundle, setting, deadline, time.perf_counter())
        if not self._knows(terms.setting):
            self._learn(terms.setting).result()
        with self._admitted(terms.setting, images) as (given, permits):
            question = question_of(given, self.bundle, terms, seeds)
            with cared_for(self._looks(question)) as looks:
                raws = [raw for look in looks for raw in in_time(look, terms.deadline)]
            with cared_for(self._submit(question, raws, permits)) as answers:
                return self._judged([answer.result() for answer in answers], raws)

    async def ask(
        self,
        images: Images,
        *,
        setting: str | None = None,
        deadline: float | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Verdict]:
        """The same for asyncio: `verdicts = await defense.ask(images)`.  Cancelling it frees its chains."""
        terms = terms_of(self.bundle, setting, deadline, time.perf_counter())
        if not self._knows(terms.setting):
            await asyncio.wrap_future(self._learn(terms.setting))
        with self._admitted(terms.setting, images) as (given, permits):
            question = await asyncio.to_thread(question_of, given, self.bundle, terms, seeds)
            with cared_for(self._looks(question)) as looks, late_is_said():
                async with asyncio.timeout(left(terms.deadline)):
                    raws = [raw for look in looks for raw in await asyncio.wrap_future(look)]
            with cared_for(self._submit(question, raws, permits)) as answers:
                found = await asyncio.gather(*map(asyncio.wrap_future, answers))
                return [verdict for verdict, _ in self._judged(found, raws)]

    @property
    def settings(self) -> tuple[str, ...]:
        """The names that `setting` can take."""
        return self.bundle.settings.names

    def prepare(self, *settings: str) -> None:
        """Make settings ready, so that their first question does not wait for it.

        Raises InvalidOption for one that the bundle does not have.
        """
        for name in settings:
            self._learn(setting_of(self.bundle, name)).result()

    def close(self, drain: float = 10.0) -> None:
        """Take no more questions, give those under way `drain` seconds, end the thread."""
        self._end.detach()
        self._driver.close(drain)

    def __enter__(self) -> Defense:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        of = self.bundle
        return (
            f"<Defense {of.name} {of.version}, digest {of.digest[:12]}, settings {', '.join(self.settings)} "
            f"(default {of.settings.default}), runner {self.runner}>"
        )

    def _knows(self, setting: Setting) -> bool:
        """Whether the cost of its chains is known: without that nothing has a price."""
        return all(work in self._costs for work in (CLASSIFY, *assembly.kinds_of([setting])))

    def _learn(self, setting: Setting) -> Future[None]:
        return self._driver.call(partial(self._measure, setting))

    def _measure(self, setting: Setting) -> None:
        if not self._knows(setting):
            self._costs.add(assembly.measured(self._made, [setting], self.bundle.shape))

    @contextmanager
    def _admitted(self, setting: Setting, images: Images) -> Iterator[tuple[Images, list[Permit]]]:
        """The images, which nobody has read yet, and a permit for each; those that no job took come back."""
        given = gathered(images, self.bundle.shape)
        with ExitStack() as stack:
            yield given, [stack.enter_context(self._driver.admit(setting)) for _ in range(len(given))]

    def _looks(self, question: Question) -> list[Future[list[Raw]]]:
        size = at_most(PIECE, self.bundle.shape, PIECE_PIXELS)
        pieces = torch.split(question.images, size) if len(question.images) else ()
        return [self._driver.call(partial(self._look, piece)) for piece in pieces]

    def _look(self, images: Tensor) -> list[Raw]:
        """What is known of the images before they are purified."""
        try:
            return self._inspector(images)
        except RuntimeError as error:
            raise EngineFailure("the runner failed to look at the images: another one may not") from error

    def _submit(
        self, question: Question, raws: Sequence[Raw], permits: Sequence[Permit]
    ) -> list[Future[Answer]]:
        jobs = question.jobs(raws, self._ids)
        return [self._driver.submit(*pair) for pair in zip(jobs, permits, strict=True)]

    def _judged(self, answers: Sequence[Answer], raws: Sequence[Raw]) -> list[tuple[Verdict, Tensor]]:
        return [
            (verdict_of(self.bundle, answer, raw), answer.result.purified[0])
            for answer, raw in zip(answers, raws, strict=True)
        ]
