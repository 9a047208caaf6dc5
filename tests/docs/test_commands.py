"""Every command of the pages is one that `metastable` takes: parsed, not run."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from typing import NoReturn

import pytest

from metastable import cli, console
from metastable.cli.completion import every
from tests.cli.given import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "model_store").rglob("*.md"))
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(metastable [^`]+)`")
PLACEHOLDER = re.compile(r"[A-Z]+|\$\(.*\)")


def commands(page: str) -> Iterator[str]:
    """Those in blocks of code, and those that stand between backquotes in the text."""
    for block in BLOCK.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            if (at := line.find("metastable ")) >= 0 and re.fullmatch(r"(?:\$ |\S*/)?", line[:at].lstrip()):
                yield line[at:]
    yield from INLINE.findall(BLOCK.sub("", page))


def words(command: str) -> list[str]:
    """The words after `metastable`, up to a comment, a pipe or another file; brackets are left out."""
    found = shlex.split(re.sub(r"[\[\]]", " ", command), comments=True)[1:]
    ends = [i for i, word in enumerate(found) if word in ("|", ">", "&&", "&", ";")]
    return found[: ends[0]] if ends else found


class Wrong(Exception):
    """What the parser refuses."""


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def error(self: console.Parser, message: str) -> NoReturn:
        raise Wrong(message)

    monkeypatch.setattr(console.Parser, "error", error)
    made = cli.parser(lambda command: True)
    for one in every(made):  # words in capitals, and what a shell fills in, are any value
        for action in one._actions:
            kind = action.type
            if callable(kind):
                action.type = lambda text, kind=kind: text if PLACEHOLDER.fullmatch(text) else kind(text)
    return made


def lenient(parser: argparse.ArgumentParser) -> None:
    """Take commands that are cut short."""
    for one in every(parser):
        for action in one._actions:
            action.required = False
        for group in one._mutually_exclusive_groups:
            group.required = False


def refused(parser: argparse.ArgumentParser, page: str) -> list[str]:
    found = []
    for command in commands(page):
        given = [word for word in words(command) if word != "..." and word != "COMMAND"]
        if "--help" in given:
            given.remove("--help")
        try:
            console.parse(parser, given)
        except Wrong as error:
            found.append(f"{command}: {error}")
    return found


def test_blocks_hold_whole_commands(whole: argparse.ArgumentParser) -> None:
    seen = 0
    for page in PAGES:
        text = "\n".join(f"```\n{block}```" for block in BLOCK.findall(page.read_text()))
        complete = [one for one in commands(text) if not {"...", "DIR", "FILE", "M"} & set(words(one))]
        seen += len(complete)
        assert refused(whole, "```\n" + "\n".join(complete) + "\n```") == [], page.name
    assert seen > 50


def test_every_command_is_known_with_its_options(whole: argparse.ArgumentParser) -> None:
    lenient(whole)
    for page in PAGES:
        assert refused(whole, page.read_text()) == [], page.name


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```\nmetastable evaluate tabel --work x\n```", "invalid choice: 'tabel'"),
        ("```\n$ metastable bench steps \\\n    --round 3\n```", "unrecognized arguments: --round"),
        ("use `metastable train score --update 5`", "unrecognized arguments: --update"),
        ("```\n.venv/bin/metastable serv\n```", "invalid choice: 'serv'"),
    ],
)
def test_what_is_wrong_is_found(whole: argparse.ArgumentParser, page: str, said: str) -> None:
    lenient(whole)
    [found] = refused(whole, page)
    assert said in found


def test_no_page_has_the_old_programs() -> None:
    for page in PAGES:
        assert not re.search(r"-m (metastable\.|export|loadtest|benchmarks|deploy|demo)", page.read_text()), (
            page
        )
