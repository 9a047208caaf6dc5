import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metastable.evaluation import __main__ as command
from metastable.evaluation.pool import Here


def test_here_an_item_is_taken_when_the_result_before_it_was_given() -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        for item in (3, 1):
            seen.append(f"take {item}")
            yield item

    for item, result in Here().map(lambda item: 10 * item, items()):
        seen.append(f"give {item} {result}")
    assert seen == ["take 3", "give 3 30", "take 1", "give 1 10"]


COMMANDS = {
    "suite": ("robust", "--attack", "suite", "--settings", "none", "--work", "work"),
    "rows": ("robust", "--rows", "none:transfer", "--work", "work"),
    "certify": ("certify", "--settings", "noise", "--work", "work"),
}


@pytest.mark.parametrize("asked", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.usefixtures("pictures")
def test_without_the_package_an_error_names_the_extra(
    asked: tuple[str, ...], tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    shared = ["--bundle", str(tiny_folder), "--n", "2", "--settings-file", "settings.yaml", "--ray", "local"]
    monkeypatch.setattr("sys.argv", ["evaluation", *asked, *shared])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --ray needs the package ray: pip install 'metastable[ray]'"
    )


SETTINGS = """
default: none
caps: {chains: 8, steps: 8}
settings:
  none: {dynamics: none}
  noise: {dynamics: noise, chains: 2, steps: 1, sigma: 0.1}
"""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--ray-threads", "2"), "--ray-threads says nothing without --ray"),
        (("--ray-gpus", "2", "--device", "cuda"), "--ray-gpus says nothing without --ray"),
        (("--ray-gpus", "2", "--ray", "local"), "--ray-gpus says nothing without --device"),
    ],
)
def test_options_that_would_be_idle_are_refused(
    asked: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluation", *COMMANDS["rows"], *asked])
    with pytest.raises(SystemExit):
        command.main()
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_commands_that_do_not_ask_for_it_do_not_import_it() -> None:
    modules = "metastable.evaluation.__main__, loadtest.__main__"
    code = f"import sys, {modules}; assert not {{'ray', 'metastable.evaluation.on_ray'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
