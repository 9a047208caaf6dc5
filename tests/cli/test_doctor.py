from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metastable.cli import doctor
from metastable.engine.runners import choose
from tests.cli.given import run


@pytest.mark.slow
def test_it_says_what_is_here_and_how_to_get_the_rest(tmp_path: Path) -> None:
    done = run("doctor", "--json", "--artifacts", tmp_path, METASTABLE_DATA=str(tmp_path))
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["runners"]) == set(choose.MAKERS)
    assert found["runners"]["torch"] is None
    assert f"metastable export all --only aot --out {tmp_path}" in found["runners"]["aot"]
    assert "is missing" in found["data"]["mnist"]["missing"]
    assert found["cpu"]["usable_cores"] >= 1
    assert set(found["java"]) in ({"version", "source"}, {"missing"})


@pytest.mark.slow
def test_it_is_read_by_people_too() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    assert "runner    torch: can be made" in done.stdout


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 fma amx_bf16\nflags\t\t: fpu avx2 fma amx_bf16\n", "A",
         ["avx2", "fma", "amx_bf16"]),
        ("Features\t: fp asimd sve\n", None, ["asimd", "sve"]),
        ("", None, []),
    ],
)  # fmt: skip
def test_processors_are_read(text: str, name: str | None, features: list[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    found = doctor.cpu(tmp_path / "cpuinfo")
    assert found["features"] == features
    assert found["name"] == name if name else found["name"]
