import json
import sys
from pathlib import Path

import pytest

from loadtest import __main__ as command
from loadtest import sets
from metastable import console, datasets
from tests.launched import free_port
from tests.loadtest.servers import Behaviour, serving
from tests.loadtest.test_make import images
from tests.loadtest.test_sets import small


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `python -m loadtest WORDS`."""
    monkeypatch.setattr(sys, "argv", ["loadtest", *words])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sets.save(tmp_path / "clean.npz", small("clean"))
    sets.save(tmp_path / "pgd.npz", small())
    return tmp_path


def run(folder: Path, url: str, out: str, *more: str) -> list[str]:
    words = ["run", "--url", url, "--arm", "fast", "--images", "clean:0.5,pgd:0.5", "--sets", str(folder)]
    words += ["--n", "12", "--rate", "60", "--warmup", "1", "--rounds", "2", "--timeout", "1"]
    return [*words, "--out", str(folder / out), *more]


@pytest.mark.slow
def test_run_and_compare_end_as_ci_needs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A busy machine makes the client late, which is not what this is about.
    monkeypatch.setattr("loadtest.validity.LAG_MS", 1e6)
    with serving(Behaviour()) as url:
        assert call(monkeypatch, *run(folder, url, "a", "--fail-if", "unanswered>0")) == 0
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (line["command"], line["verdict"]) == ("run", "VALID")
        assert Path(line["report"]).is_file()
        assert call(monkeypatch, *run(folder, url, "b", "--fail-if", "p50<99999")) == command.FAILED
        assert call(monkeypatch, *run(folder, url, "c", "--fail-if", "nonsense")) == console.WRONG
    reports = [str(folder / name / "report.json") for name in "ab"]
    assert call(monkeypatch, "compare", *reports) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["same_images"] is True
    assert call(monkeypatch, "compare", *reports, "--fail-if", "p50<99999") == command.FAILED
    assert call(monkeypatch, "compare", reports[0], str(folder / "pgd.npz")) == console.WRONG


@pytest.mark.slow
def test_an_invalid_run_says_so_by_its_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = call(monkeypatch, *run(folder, f"http://127.0.0.1:{free_port()}", "dead"))
    assert status == command.INVALID
    assert "refused" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_writes_its_frontier(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sweep", "--arm", "fast", "--images", "clean,pgd", "--sets", str(folder), "--low", "50"]
    words += [
        "--high",
        "100",
        "--probes",
        "2",
        "--warmup",
        "0",
        "--target",
        "2000",
        "--out",
        str(folder / "s"),
    ]
    with serving(Behaviour()) as url:
        assert call(monkeypatch, *words, "--url", url) == 0
    assert json.loads((folder / "s" / "sweep.json").read_text())["rows"][0]["rate"] == 100
    assert (folder / "s" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_sets_are_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", str(folder / "pgd.npz")) == 0
    assert json.loads(capsys.readouterr().out)["largest_distance"] == pytest.approx(8 / 255, rel=1e-4)
    assert call(monkeypatch, "check", str(folder / "none.npz")) == console.WRONG


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://192.0.2.1:8080"], "--allow-remote"),
        (["--arm", "fast"], "the same name"),
        (["--arm", "x:url=nonsense"], "no http address"),
    ],
)
def test_what_cannot_be_run_is_explained(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    assert call(monkeypatch, *run(folder, "http://127.0.0.1:1", "x", *words)) == console.WRONG
    assert said in capsys.readouterr().err
    assert not (folder / "x").exists()


def test_a_set_on_a_cluster_without_the_package_names_the_extra(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(datasets, "load", lambda *_: images(2))
    words = [
        "--bundle",
        str(tiny_folder),
        "--data",
        str(tmp_path),
        "--n",
        "2",
        "--out",
        str(tmp_path / "a.npz"),
    ]
    asked = ["make", *words, "--attack", "transfer", "--ray", "local"]
    assert call(monkeypatch, *asked) == console.WRONG
    assert "pip install 'metastable[ray]'" in capsys.readouterr().err
    assert call(monkeypatch, "make", *words, "--ray", "local") == console.WRONG
    assert "--ray says nothing without --attack" in capsys.readouterr().err
