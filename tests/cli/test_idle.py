"""Options that would be taken and not used are refused, in one sentence."""

from __future__ import annotations

import argparse

import pytest

from metastable import console
from metastable.cli import main

PICTURES = "beside --images, which names a folder in place of a data set: leave "
SHIFT_ONLY = "beside --shift-only, which leaves the score norm's threshold alone: leave "


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate table --work w --images p --dataset mnist", f"--dataset says nothing {PICTURES}it out"),
        ("evaluate honest --images p --data=d", f"--data says nothing {PICTURES}it out"),
        (
            "calibrate --images p --data d --dataset mnist",
            f"--dataset and --data say nothing {PICTURES}them out",
        ),
        ("loadtest make --out x.npz --images p --data d", f"--data says nothing {PICTURES}it out"),
        ("train score --out o --images p --dataset cifar10", f"--dataset says nothing {PICTURES}it out"),
        ("train harden --out o --images p --data d", f"--data says nothing {PICTURES}it out"),
        ("export all --images p --calibration-data d", f"--calibration-data says nothing {PICTURES}it out"),
        (
            "train natural --out o --pictures p --data d",
            "--data says nothing beside --pictures, which names the folder: leave it out",
        ),
        (
            "train score --out o --no-mirrored --shape 3x8x8",
            "--shape and --no-mirrored say nothing without --images, the folder of the pictures: leave them "
            "out, or give --images",
        ),
        (
            "calibrate --crops 3 --split-seed 2",
            "--split-seed and --crops say nothing without --images, the folder of the pictures: leave them "
            "out, or give --images",
        ),
        ("calibrate --shift all --shift-only --n 9", f"--n says nothing {SHIFT_ONLY}it out"),
        (
            "calibrate --shift all --shift-only --network energy",
            f"--network says nothing {SHIFT_ONLY}it out",
        ),
        (
            "calibrate --shift-n 50",
            "--shift-n says nothing without --shift, which names settings: leave it out, or give --shift",
        ),
        (
            "calibrate --clean-share 0.1",
            "--clean-share says nothing without --augment, which changes the others: leave it out, or give "
            "--augment",
        ),
        (
            "evaluate robust --work w --rows fast:transfer --settings none",
            "--settings says nothing beside --rows, which names settings and attacks: leave it out",
        ),
        (
            "evaluate corruptions --work w --corruptions c --images p",
            "--images says nothing here, where --corruptions has the images: leave it out",
        ),
        (
            "evaluate latency --images p --labels l",
            "--labels says nothing here, where --images, or samples/, is taken whole: leave it out",
        ),
        (
            "evaluate figure scores --work w --dataset mnist",
            "--dataset says nothing here, where --work has the images: leave it out",
        ),
        (
            "evaluate resubmit --work w --data d",
            "--data says nothing here, where --work has the images: leave it out",
        ),
        (
            "loadtest make --out x.npz --eps 8/255",
            "--eps says nothing without --attack, as the images stay clean: leave it out, or give --attack",
        ),
        (
            "ask x.png --in-process --key-file k",
            "--key-file says nothing beside --in-process, which asks no server: leave it out",
        ),
        (
            "ask x.png --url http://127.0.0.1:1 --bundle mnist",
            "--bundle says nothing beside --url, whose server has a bundle of its own: leave it out",
        ),
    ],
    ids=lambda text: "" if "says nothing" in text or "say nothing" in text else text,
)
def test_a_pair_that_contradicts_itself_is_refused(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2
    assert capsys.readouterr().err == f"error: {said} (see `metastable --help`)\n"


def test_options_that_do_something_pass() -> None:
    parser = console.Parser()
    for name in ("--a", "--b", "--c"):
        parser.add_argument(name, default="")
    console.idle(parser, "--a", beside="--b")
    console.idle(parser, "--a", without="--c")
    for words in ([], ["--c", "1"], ["--b", "2"], ["--a", "", "--c="]):
        assert isinstance(console.parse(parser, words), argparse.Namespace)
