"""Versions side by side and the operator's policy, for the door's launcher: docs/operating.md."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.run_folder import Refused
from metastable import bundle as bundles
from metastable.bundle import Bundle, shipped
from metastable.errors import SettingsError
from metastable.serving.backends.base import Served
from metastable.serving.policy.keeper import Keeper
from metastable.serving.policy.values import Policy

log = logging.getLogger("metastable.serving.policy")


def versions(first: Bundle, also: Sequence[str]) -> list[Bundle]:
    """The bundles to serve, each of another version, that which answers without a policy first.

    Args:
        also: `BUNDLE`, or `VERSION=BUNDLE` to call its version so here; a bundle is a folder or a shipped
            one's name.

    Raises Refused for two of one version, and BundleError for what is no bundle.
    """
    found = [first]
    for text in also:
        version, named, where = text.partition("=") if "=" in text else ("", "", text)
        one = bundles.load(shipped.folder(where))
        if named and not (version.isascii() and version.isprintable() and 0 < len(version) <= 64):
            raise Refused(f"--also {text}: a version is 1 to 64 characters, as in 0.2.0={where}")
        one = dataclasses.replace(one, version=version) if named else one
        if one.version in [other.version for other in found]:
            raise Refused(
                f"--also {text} is version {one.version}, as another bundle is: write --also VERSION={where}"
            )
        found.append(one)
    return found


def keeper_for(path: Path | None, served: Mapping[str, Served], *, proxies: bool) -> Keeper:
    """The keeper of a policy's file, which must fit what is served; raises SettingsError.

    Args:
        served: the models by version, that which answers without a policy first.
        proxies: whether some are trusted.
    """

    def check(policy: Policy) -> None:
        policy.check(served)
        if policy.split is not None and policy.split.header is not None and not proxies:
            raise SettingsError(
                f"the policy splits by the header {policy.split.header}, which is believed from a trusted "
                "proxy alone: name it with --proxy, or leave split.header out"
            )

    return Keeper(path, check)


def on_hangup(path: Path | None, keeper: Keeper) -> Callable[[], None] | None:
    """What SIGHUP calls where there is a policy; None lets it stop the server."""
    return None if path is None else reloader(keeper)


def notes(path: Path | None) -> tuple[str, ...]:
    """What the server says of it when it is ready."""
    return () if path is None else (f"  policy:   {path}, read again at kill -HUP {os.getpid()}",)


def reloader(keeper: Keeper) -> Callable[[], None]:
    """What SIGHUP calls: it reads the policy again beside the event loop, and logs how that went."""
    lock = threading.Lock()

    def read() -> None:
        with lock:  # of two signals in a row the last one counts
            try:
                keeper.reload()
            except SettingsError as error:
                log.error("%s; the policy is the same as before", error)
            else:
                log.warning("the policy was read again")

    return lambda: threading.Thread(target=read, name="policy", daemon=True).start()
