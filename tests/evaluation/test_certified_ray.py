"""The commands on a cluster that is there already, each a process of its own, write what they write here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metastable.evaluation.on_ray import RayPool
from metastable.evaluation.outcomes import read_outcomes
from tests import image_files
from tests.evaluation.test_certified import SETTINGS

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def given(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """A folder of pictures, and settings that have certificates."""
    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = image_files.RGB if index == 0 else image_files.RGB[::-1, ::index].repeat(index, 1)
        (tmp_path / "images" / f"{index}.png").write_bytes(image_files.save(pixels.copy()))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    shared = ["--bundle", str(tiny_folder), "--images", str(tmp_path / "images"), "--test-share", "1"]
    return [*shared, "--settings-file", str(tmp_path / "settings.yaml"), "--n", "3"]


def command(work: Path, *asked: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, "-m", "metastable", "evaluate", *asked, "--work", str(work)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def on(pool: RayPool) -> list[str]:
    """The options that name its cluster."""
    address = ray.get_runtime_context().gcs_address
    return ["--ray", address, "--ray-threads", str(torch.get_num_threads())]


def test_certificates_are_the_same_on_a_cluster_and_go_on_there(
    given: list[str], ray_pool: RayPool, tmp_path: Path
) -> None:
    # More chains than a span has, so that the votes of an image are put together of several tasks.
    asked = ["certify", *given, "--settings", "smooth,noise", "--choose", "20", "--chains", "600"]
    here = command(tmp_path / "here", *asked)
    lines = sorted((tmp_path / "here" / "outcomes.jsonl").read_text().splitlines())
    assert len(lines) == 6
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "outcomes.jsonl").write_text(lines[4] + "\n" + lines[1][:20])
    there = command(tmp_path / "there", *asked, *on(ray_pool))
    assert sorted((tmp_path / "there" / "outcomes.jsonl").read_text().splitlines()) == lines
    assert there["rows"] == here["rows"]
    assert "on a Ray cluster of 1 machines" in there["machine"]


def test_the_suite_as_a_command(given: list[str], ray_pool: RayPool, tmp_path: Path) -> None:
    asked = ["robust", *given, "--attack", "suite", "--settings", "noise", "--members", "transfer,joint"]
    cheap = ["--steps", "1", "--samples", "2", "--eps", "0,8/255", "--batch", "1"]
    command(tmp_path / "here", *asked, *cheap)
    command(tmp_path / "there", *asked, *cheap, *on(ray_pool))
    for radius in ("eps-0", "eps-8"):
        here, there = (
            {
                (o["attack"], o["index"]): {k: v for k, v in o.items() if k not in ("ms", "seconds")}
                for o in read_outcomes(tmp_path / name / radius / "outcomes.jsonl")
            }
            for name in ("here", "there")
        )
        assert there == here
        assert len(here) > 6
