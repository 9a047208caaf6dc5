"""The commands: all there, all described, and imported only when they run."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from metastable import cli
from metastable.cli import table
from metastable.cli.completion import every
from metastable.errors import MissingPackage
from tests.cli.given import run

ROOT_FOLDERS = ("deploy", "handlers", "export", "loadtest", "benchmarks", "demo")


@pytest.fixture(scope="module")
def whole() -> argparse.ArgumentParser:
    return cli.parser(lambda command: True)


def test_every_option_and_every_command_says_what_it_is_for(whole: argparse.ArgumentParser) -> None:
    silent = []
    for one in every(whole):
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                told = {pseudo.dest for pseudo in action._choices_actions if pseudo.help}
                silent += [f"{one.prog} {name}" for name in action.choices if name not in told]
            elif not action.help:
                silent.append(f"{one.prog} {'/'.join(action.option_strings) or action.dest}")
    assert silent == []


def test_every_help_can_be_printed(whole: argparse.ArgumentParser) -> None:
    for one in every(whole):
        assert one.prog in one.format_help()


def test_every_command_runs_something(whole: argparse.ArgumentParser) -> None:
    leaves = [
        one
        for one in every(whole)
        if not any(isinstance(action, argparse._SubParsersAction) for action in one._actions)
    ]
    assert len(leaves) > 40
    assert [one.prog for one in leaves if not callable(one.get_default("run"))] == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["bundle", "--help"], ["ask", "--help"]])
def test_help_comes_without_pytorch(words: list[str]) -> None:
    script = (
        "import sys; from metastable import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('heavy', sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-2:] == ["status 0", "heavy []"]


@pytest.mark.slow
def test_only_the_table_names_what_stands_above_the_library(root: Path) -> None:
    """import-linter sees no import in a string: so there are none but of commands, and `metastable.bring`."""
    named = []
    for path in sorted((root / "metastable").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                place = node.value.partition(":")[0]
                if place.partition(".")[0] in ROOT_FOLDERS and place.replace(".", "").isidentifier():
                    named += [path.relative_to(root).as_posix()] if "." in place else []
    assert set(named) == {"metastable/bringing.py", "metastable/cli/table.py"}


def test_a_folder_that_is_not_there_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "root", lambda: None)  # as in an installed wheel
    with pytest.raises(MissingPackage, match="`metastable loadtest` needs the folder loadtest"):
        cli.parser(lambda command: command.words == ("loadtest",))
    assert cli.main(["loadtest", "check", "x.npz"]) == 2


def test_a_package_that_is_not_there_is_said_with_its_extra() -> None:
    command = table.Command(("wanting",), "tests.cli.wanting", "fill", "some", "")
    with pytest.raises(MissingPackage, match=r"package no_such_package: pip install 'metastable\[some\]'"):
        table.filler(command)


@pytest.mark.slow
def test_what_is_no_command_is_one_sentence() -> None:
    done = run("evaluate", "tabel")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: argument COMMAND: invalid choice: 'tabel'")
    assert done.stderr.count("\n") == 1
