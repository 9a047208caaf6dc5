"""A policy as a file of YAML; docs/operating.md has a whole one.

policy = parse(text, salt=secrets.token_bytes(32))
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from metastable import yaml_text
from metastable.dynamics.base import real, shown, whole
from metastable.errors import SettingsError
from metastable.serving.options import HEADER_PREFIX
from metastable.serving.policy.values import Action, Arm, By, Policy, Rule, Shadow, Split

PARTS = ("version", "clients_may_name", "split", "shadow", "flags")
MOST_BYTES = 100_000
MOST_ARMS = 32
MOST_WAITING = 1000
MOST_WEIGHT = 1e6
SHORTEST_SALT = 16

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


def load(path: Path, *, salt: bytes) -> Policy:
    """The policy of a file; raises SettingsError, in one sentence, for one that cannot be read or is wrong.

    Args:
        salt: taken where the file has none.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise SettingsError(f"the policy {path} is no file: name a file of YAML")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is no UTF-8 text: write the policy as YAML") from None
    except OSError as error:
        raise SettingsError(f"the policy {path} cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise SettingsError(f"{path} is above {MOST_BYTES} bytes: a policy is a short file")
    return parse(text, salt=salt, folder=path.parent)


def parse(text: str, *, salt: bytes, folder: Path = Path()) -> Policy:
    """The policy that a text says; raises SettingsError naming the first thing that is wrong.

    Args:
        folder: what a relative `shadow.report` stands in.
    """
    try:
        raw = yaml_text.read(text)
    except ValueError as error:
        raise SettingsError(f"the policy is not valid YAML: {error}") from None
    top = _mapping(raw, "", *PARTS)
    if not top:
        raise SettingsError(
            "the policy says nothing: write split, shadow, flags, version or clients_may_name"
        )
    parts: dict[str, Callable[[Any], Any]] = {
        "version": lambda one: _version(one, "version"),
        "clients_may_name": _nameable,
        "split": lambda one: _split(one, salt),
        "shadow": lambda one: _shadow(one, folder),
        "flags": _flags,
    }
    return Policy(**{name: parts[name](value) for name, value in top.items()})


def _split(raw: Any, salt: bytes) -> Split:
    given = _mapping(raw, "split", "header", "salt", "arms", needed=("arms",))
    header = given.get("header")
    if header is not None and (not isinstance(header, str) or not _HEADER.fullmatch(header)):
        raise _wrong("split.header", "the name of a header, of letters, digits and -", header)
    if header is not None and header.lower().startswith(HEADER_PREFIX):
        raise _wrong("split.header", "none that begins with X-Metastable-, which are options", header)
    if "salt" in given:
        own = given["salt"]
        if not isinstance(own, str) or not SHORTEST_SALT <= len(own) <= 256:
            raise SettingsError(  # and is not repeated
                f"the policy's split.salt must be a text of {SHORTEST_SALT} to 256 characters, which nobody "
                "else knows"
            )
        salt = own.encode("utf-8", "surrogatepass")
    arms = _mapping(given["arms"], "split.arms")
    if not 1 <= len(arms) <= MOST_ARMS:
        raise SettingsError(f"the policy's split.arms has {len(arms)} arms: give 1 to {MOST_ARMS}")
    found = tuple(_arm(name, fields) for name, fields in arms.items())
    return Split(found, salt, None if header is None else header.lower())


def _arm(name: str, raw: Any) -> Arm:
    where = f"split.arms.{name}"
    given = _mapping(raw, where, "setting", "weight", "version", needed=("setting", "weight"))
    weight = given["weight"]
    if not real(weight) or not 0 < weight <= MOST_WEIGHT or not math.isfinite(weight):
        raise _wrong(f"{where}.weight", f"a number above 0 and up to {MOST_WEIGHT:g}", weight)
    version = _version(given["version"], f"{where}.version") if "version" in given else None
    return Arm(name, _setting(given["setting"], f"{where}.setting"), float(weight), version)


def _shadow(raw: Any, folder: Path) -> Shadow:
    given = _mapping(raw, "shadow", "setting", "share", "waiting", "report", needed=("setting", "share"))
    share, waiting = given["share"], given.get("waiting", Shadow.waiting)
    if not real(share) or not 0 < share <= 1:
        raise _wrong("shadow.share", "a number above 0 and up to 1", share)
    if not whole(waiting) or not 1 <= waiting <= MOST_WAITING:
        raise _wrong("shadow.waiting", f"a whole number from 1 to {MOST_WAITING}", waiting)
    report = given.get("report")
    if report is not None and (not isinstance(report, str) or not report or not report.isprintable()):
        raise _wrong("shadow.report", "the path of a file", report)
    if report is not None and ((folder / report).is_dir() or not (folder / report).parent.is_dir()):
        raise _wrong("shadow.report", "a file in a folder that exists", report)
    setting = _setting(given["setting"], "shadow.setting")
    return Shadow(setting, float(share), waiting, None if report is None else folder / report)


def _flags(raw: Any) -> dict[str, Rule]:
    found = {name: _rule(name, one) for name, one in _mapping(raw, "flags").items()}
    for name, rule in found.items():
        after = found.get(rule.setting, Rule())
        if rule.action == "stronger" and after.action not in ("answer", "mark"):
            raise SettingsError(
                f"the policy's flags.{name} goes on to {rule.setting}, whose own rule is {after.action}: an "
                f"image is asked about twice at most, so give {rule.setting} answer or mark, or name another "
                "setting"
            )
    return found


def _rule(name: str, raw: Any) -> Rule:
    where = f"flags.{name}"
    given = _mapping({"action": raw} if isinstance(raw, str) else raw, where, "action", "by", "setting")
    action: Any = given.get("action")
    by = given.get("by", Rule.by)
    if action not in get_args(Action):
        raise _wrong(f"{where}.action", f"one of {', '.join(get_args(Action))}", action)
    if by not in get_args(By):
        raise _wrong(f"{where}.by", f"one of {', '.join(get_args(By))}", by)
    if (action == "stronger") != ("setting" in given):
        raise SettingsError(f"the policy's {where} has a setting if, and only if, its action is stronger")
    if action != "stronger":
        return Rule(action, by)
    setting = _setting(given["setting"], f"{where}.setting")
    if setting == name:
        raise SettingsError(f"the policy's {where} goes on to itself: name a stronger setting")
    return Rule(action, by, setting)


def _nameable(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise _wrong("clients_may_name", "a list of settings, [] for none", raw)
    return tuple(_setting(one, "clients_may_name") for one in raw)


def _setting(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _wrong(where, "the name of a setting", value)
    return value


def _version(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 64:
        raise _wrong(where, 'a version in quotes, such as "1.2"', value)
    return value


def _mapping(raw: Any, where: str, *known: str, needed: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """`raw` if it is a mapping of names: of `known` ones, or of any where none is given."""
    at = f"the policy's {where}" if where else "the policy"
    if not isinstance(raw, dict):
        raise SettingsError(f"{at} must be a mapping, not {shown(raw)}")
    for name in raw:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SettingsError(f"{at} has a name that is not of letters, digits, _ . and -: {shown(name)}")
        if known and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f", perhaps {near[0]} is meant" if near else ""
            raise SettingsError(f"{at} has no {name}{meant}: use {', '.join(known)}")
    if missing := [name for name in needed if name not in raw]:
        raise SettingsError(f"{at} lacks {' and '.join(missing)}")
    return raw


def _wrong(where: str, wanted: str, value: Any) -> SettingsError:
    return SettingsError(f"the policy's {where} must be {wanted}, not {shown(value)}")
