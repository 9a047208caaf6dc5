"""The subcommands of `metastable`, by name: each is imported only when it runs.

Some of them live in the repository's other folders, which stand above this library and which it must not
import: so they are strings here, and here only, and where a folder is absent its commands say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from metastable import version
from metastable.console import Fill
from metastable.errors import MissingPackage


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        words: its name; two words are a subcommand of a group.
        module: that is imported for it.
        function: of the module, which fills the parser (metastable.console).
        extra: what `pip install 'metastable[EXTRA]'` is to be given for it; empty where nothing is.
        summary: one line of help.
    """

    words: tuple[str, ...]
    module: str
    function: str
    extra: str
    summary: str


def _command(words: str, place: str, extra: str, summary: str) -> Command:
    module, _, function = place.partition(":")
    return Command(tuple(words.split()), module, function or "fill", extra, summary)


GROUPS = {
    "bundle": "look into a bundle, or make one",
    "export": "what serves a bundle: graphs for other runtimes, the TorchServe archive",
}
COMMANDS = (
    _command("serve", "deploy.serve", "serve", "start the server, wait until it predicts, stop it cleanly"),
    _command(
        "ask", "metastable.cli.ask", "client", "ask a running server about images, or answer without one"
    ),
    _command("purify", "metastable.cli.purify", "", "write purified images, and what they are"),
    _command("train", "metastable.training.__main__", "", "train networks, in run folders that go on"),
    _command(
        "pictures", "metastable.training.pictures", "train", "take listed pictures out of unpacked packages"
    ),
    _command("bundle info", "metastable.cli.bundles:fill_info", "", "what a bundle holds"),
    _command(
        "bundle check", "metastable.cli.bundles:fill_check", "", "whether a bundle is whole and answers"
    ),
    _command("bundle build", "export.__main__:fill_bundle", "export", "write a bundle from training runs"),
    _command(
        "bundle harden", "export.__main__:fill_harden", "export", "write one from a run of `train harden`"
    ),
    _command(
        "bundle settings", "export.__main__:fill_settings", "export", "put other settings into a bundle"
    ),
    _command("bring", "export.bring_command", "export", "defend a classifier of your own, of any size"),
    _command(
        "export all", "export.__main__:fill_all", "export", "every artifact that can exist here, judged"
    ),
    _command("export mar", "export.__main__:fill_mar", "serve", "the archive that the server loads"),
    _command(
        "calibrate", "metastable.evaluation.calibrated", "", "set the anomaly threshold of a bundle on images"
    ),
    _command("evaluate", "metastable.evaluation.__main__", "evaluate", "measure what the defense is worth"),
    _command("loadtest", "loadtest.__main__", "loadtest", "load a running server, and judge its answers"),
    _command("bench", "benchmarks.__main__", "", "measure speed, on CPU and GPU"),
    _command("demo", "demo.__main__", "", "attack the samples, and ask a running server about them"),
    _command("doctor", "metastable.cli.doctor", "", "what this machine has, and which runners work on it"),
    _command("completion", "metastable.cli.completion", "", "a script that lets a shell complete all this"),
)


def root() -> Path | None:
    """The folder of the checkout that this library was imported from; None where it is installed without."""
    folder = Path(version.__file__).resolve().parent.parent
    return folder if (folder / "pyproject.toml").is_file() else None


JAVA = "deploy.java"
"""The module that finds a Java runtime, for `doctor`."""


def filler(command: Command) -> Fill:
    """The function of a command, imported.

    Raises MissingPackage with what to do where its folder or a package that it needs is not installed.
    """
    name = f"`metastable {' '.join(command.words)}`"
    try:
        found: Fill = getattr(imported(command.module, name), command.function)
    except ModuleNotFoundError as error:
        how = f"pip install 'metastable[{command.extra}]'" if command.extra else f"pip install {error.name}"
        raise MissingPackage(f"{name} needs the package {error.name}: {how}") from None
    return found


def imported(module: str, name: str) -> ModuleType:
    """A module of the library or of the repository, for the command of this name.

    Raises MissingPackage where its folder is not there, ModuleNotFoundError for what it imports itself.
    """
    folder = module.partition(".")[0]
    if (checkout := root()) and str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))  # as `python -m` does in the checkout
    if folder != "metastable" and (checkout is None or importlib.util.find_spec(folder) is None):
        raise MissingPackage(
            f"{name} needs the folder {folder} of the repository, which is not here: run it from a checkout"
        )
    return importlib.import_module(module)
