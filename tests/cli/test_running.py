"""How a command ends: status, one sentence, one line of JSON, a signal."""

from __future__ import annotations

import argparse
import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from metastable import cli, console
from tests.cli.given import PATIENCE, ROOT, run


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    for words, said in (
        (("train", "classifier", "--out", tmp_path / "run"), "no data folder: pass --data"),
        (("train", "malade", "--out", tmp_path / "run"), "needs --classifier"),
        (("bundle", "info", tmp_path / "none"), "none"),
        (("ask", tmp_path / "none.png", "--in-process"), "none.png: No such file or directory"),
        (("loadtest", "check", tmp_path / "none.npz"), "there is no attack set"),
        (("serve", "--archive", tmp_path / "none.mar"), "none.mar is missing"),
    ):
        done = run(*words)
        assert done.returncode == 2, words
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_a_run_goes_on(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, 64, 28, 28) + bytes(64 * 784)
        )
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 64) + bytes(64))
    command = [sys.executable, "-m", "metastable", "train", "score", "--dataset", "mnist"]
    command += ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--widths", "4,4,4", "--batch", "4"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        began = time.monotonic()
        while not (tmp_path / "run" / "log.jsonl").exists():  # it trains
            assert process.poll() is None
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert f"stopped: the same command goes on from what is in {tmp_path / 'run'}" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"'{sys.executable}' -m metastable completion bash | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] in ("0", str(console.UNHEARD))
    assert "Error" not in done.stderr


@pytest.mark.slow
def test_the_line_of_json_is_written_where_out_says(tmp_path: Path) -> None:
    done = run("bundle", "info", "model_store/mnist", "--out", tmp_path / "deep" / "info.json")
    line = done.stdout.splitlines()[-1]
    assert json.loads(line)["name"] == "mnist"
    assert (tmp_path / "deep" / "info.json").read_text() == line + "\n"


@pytest.mark.parametrize(
    ("out", "said"),
    [(".", "is a folder: name a file in it"), ("x.txt", "gets a line of JSON: name it x.txt.json")],
)
def test_an_out_that_cannot_be_the_line_of_json_is_refused_at_once(
    out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        console.add_out(parser)
        parser.set_defaults(run=lambda args: pytest.fail("it ran"))

    parser = console.Parser(prog="work")
    fill(parser)
    assert console.run(parser, ["--out", str(tmp_path / out)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_is_no_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bundle", "info", ""])
    assert end.value.code == 2
    assert "an empty name: give a folder, such as model_store/cifar10" in capsys.readouterr().err


@pytest.mark.slow
def test_bundles_are_checked(tmp_path: Path, tiny_folder: Path) -> None:
    done = run("bundle", "check", tiny_folder)
    assert json.loads(done.stdout.splitlines()[-1])["whole"] is True
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in tiny_folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    with (damaged / "score.safetensors").open("ab") as file:
        file.write(b"x")
    done = run("bundle", "check", damaged)
    assert done.returncode == 2
    assert "score.safetensors" in done.stderr


@pytest.mark.slow
def test_purified_images_are_written_beside_the_verdicts(tiny_folder: Path, tmp_path: Path) -> None:
    cat = ROOT / "samples" / "cat.png"
    out = tmp_path / "purified"
    done = run("purify", cat, "--bundle", tiny_folder, "--setting", "fast", "--out", out)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout.splitlines()[-1])["images"]
    assert json.loads((out / "verdicts.json").read_text()) == [found]
    assert found["verdict"]["chains"] == 3
    purified, before = (Image.open(path).convert("RGB") for path in (out / "cat.png", cat))
    assert purified.size == before.size
    assert purified.tobytes() != before.tobytes()
    same = run("purify", out / "cat.png", "--bundle", tiny_folder, "--out", out)
    assert (same.returncode, "written over" in same.stderr) == (2, True)


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="of work")
    parser.add_argument("--bar", action="store_true", help="show a bar")
    parser.set_defaults(run=_work)


def _work(args: argparse.Namespace) -> dict[str, object]:
    from tqdm import tqdm

    for _ in tqdm(range(1), disable=not args.bar):
        time.sleep(args.seconds)
    return {"done": True}


@pytest.mark.parametrize(("words", "told"), [([], True), (["--bar"], False)])
def test_a_command_without_a_bar_says_that_it_is_at_work(
    words: list[str], told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SIGNS", (0.05, 0.1, 60.0))
    console.main(_fill, "work", ["--seconds", "0.5", *words])
    printed = capsys.readouterr()
    assert ("work: at work for" in printed.err) is told
    assert json.loads(printed.out) == {"done": True}


@pytest.mark.parametrize("words", [["--secs", "1"], ["--seconds", "1", "--", "more"]])
def test_abbreviations_and_what_nobody_takes_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        console.main(_fill, "work", words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
