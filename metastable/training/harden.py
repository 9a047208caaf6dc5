"""Train a purifier and a classifier as one network, through noise and against attacks.

A purifier that was trained apart from its classifier loses most of its accuracy to an attacker who knows it.
Here the task's loss goes through the whole pipeline of metastable.training.harden_pipeline:

- `stability`: cross entropy against the frozen classifier's own clean labels, on noisy copies that are also
  asked to agree; only the purifier moves, and no labels are needed (Salman et al. 2020, "Denoised
  smoothing"; Jeong and Shin 2020, "Consistency regularization").
- `purifier`: adversarial, attacks on the whole pipeline, only the purifier moves (after
  Lin et al. 2024, "AToP").
- `both`: the classifier moves too.
- `classifier`: the classifier alone, for comparison, or behind a frozen purifier.

Attacks are FGSM from a random start (Wong et al. 2020, "Fast is better than free") or PGD (Madry et al. 2018,
eq. 2.1); the loss is cross entropy or TRADES (Zhang et al. 2019).  Attack and update share no noise.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metastable import datasets
from metastable.datasets.folder import AGREEMENT
from metastable.training import harden_parts
from metastable.training.harden_attack import judge
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_session import Session, begin
from metastable.training.harden_step import RING
from metastable.training.run import Paused

RESERVE = 0.03, 4.0
"""Share of the time, and seconds, that `fit_minutes` leaves for checkpoints and the end."""


def schedule(step: int, warmup: float, total: int) -> float:
    """Share of the peak learning rate: linearly up over the share `warmup` of `total`, linearly down to 0."""
    first = max(1, round(warmup * total))
    if step < first:
        return (step + 1) / first
    return max(0.0, (total - step) / max(1, total - first))


def train(config: HardenConfig, data: datasets.Source, out: Path, device: str = "auto") -> dict[str, Any]:
    """Train, resume where a checkpoint is, and return the metrics: accuracies on held-out training images.

    `robust_before` and `robust_kept` are of the checks: before the first update, and of the weights kept.

    Raises DataError or BundleError for missing data or parts, or a folder with another configuration;
    ValueError for a classifier that there is not.
    """
    session = begin(config, data, out, device)
    baseline(session)
    fit(session)
    try:
        aborted = loop(session)
    except Paused:
        session.put()
        raise
    session.run.checkpoint(session.state, now=True)
    session.averaged("best.")
    best = judge(
        session.judged,
        *session.held,
        eps=config.eps,
        steps=20,
        eot=config.check_eot,
        bf16=config.bf16,
        seed=1,
    )
    checks = [one for one in session.run.read_log() if "robust" in one]
    harden_parts.put_whole(out, session.judged, session.parts, config.dataset)
    result = session.run.finish(
        session.judged,
        {
            "natural": best["natural"],
            "robust_pgd20": best["robust"],
            "robust_before": checks[0]["robust"],
            "robust_kept": next(
                one["robust"] for one in reversed(checks) if one.get("kept", one["step"] == 0)
            ),
            "judged_on": f"{len(session.held[1])} held-out training images",
            **({} if session.labelled else {"accuracy_is": AGREEMENT}),
            "updates": session.learner.step,
            "epochs": round(session.learner.step / session.batches.per_epoch, 2),
            "restorations": session.guard.failures,
            "aborted": aborted,
            "attack_steps_at_the_end": session.guard.steps,
        },
    )
    session.put("best.")
    return result


def baseline(session: Session) -> None:
    """Judge what a new run starts from, before its first update."""
    if session.learner.step == 0:
        began = time.monotonic()
        found = session.check()
        session.guard.judge(found["robust"], finite=True)
        session.keep("best.")
        session.run.log(step=0, **found, kept=1.0, check_s=time.monotonic() - began)


def fit(session: Session) -> None:
    """Settle the number of updates of a new run: as configured, or as many as end in `fit_minutes`."""
    config = session.config
    if session.total:
        return
    session.total = config.updates
    if config.fit_minutes:
        each = session.update.seconds(session.batches, 20 if session.device.type == "cuda" else 2)
        began = time.monotonic()
        session.check()
        check = time.monotonic() - began
        share, seconds = RESERVE
        left = (
            60 * config.fit_minutes * (1 - share) - seconds - (time.monotonic() - session.began) - 6 * check
        )
        session.total = max(1, math.floor(left / (each + check / config.check_every)))
        session.run.log(step=0, seconds_an_update=each, check_s=check, planned=session.total)


def loop(session: Session) -> bool:
    """Make the updates that are left; whether the guard gave up."""
    config, run, learner = session.config, session.run, session.learner
    bar = tqdm(total=session.total, initial=learner.step, desc="harden", unit="update", mininterval=5)
    while (step := learner.step) < session.total:
        rate = config.peak * session.guard.rate * schedule(step, config.warmup, session.total)
        grown = min(1.0, (step + 1) / (config.ramp * session.total)) if config.ramp else 1.0
        session.update.load(session.batches, step, rate=rate, eps=config.eps * grown)
        session.update()
        learner.step = step = step + 1
        bar.update()
        if step % config.log_every == 0:
            seen = dict(zip(RING, session.update.ring.mean(0).tolist(), strict=True))
            session.finite &= all(map(math.isfinite, seen.values()))
            run.log(step=step, **seen, rate=rate)
            bar.set_postfix(loss=f"{seen['loss']:.3f}", right=f"{seen['attacked']:.3f}", refresh=False)
        if (step % config.check_every == 0 or step == session.total) and _checked(session):
            bar.close()
            return True
        if time.monotonic() - session.written >= config.every_s:
            session.put()
        run.checkpoint(session.state)
    bar.close()
    return False


def _checked(session: Session) -> bool:
    """Check, and do what the guard says; whether it gives up."""
    step, began = session.learner.step, time.monotonic()
    found = session.check()
    verdict = session.guard.judge(found["robust"], finite=session.finite)
    kept = float(verdict == "best")
    session.run.log(step=step, **found, kept=kept, check_s=time.monotonic() - began)
    if verdict in ("good", "best"):
        session.keep("good.")
        if verdict == "best":
            session.keep("best.")
        return False
    session.finite = True
    session.run.log(
        step=step, restored=session.guard.failures, rate_factor=session.guard.rate, steps=session.guard.steps
    )
    tqdm.write(
        f"update {step}: robust accuracy fell to {found['robust']:.3f}; the last good weights are back, the "
        f"learning rate is times {session.guard.rate:g}, the attack has {session.guard.steps} steps"
    )
    session.restore()
    return verdict == "abort"
