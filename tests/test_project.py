"""pyproject.toml, requirements.txt, requirements.lock and the package say the same."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return found


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    given = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in given}


def asked(project: dict[str, object]) -> list[Requirement]:
    extras = project["optional-dependencies"]
    dependencies = project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(dependencies, list)
    every = [
        Requirement(one) for one in [*dependencies, *(one for extra in extras.values() for one in extra)]
    ]
    return [one for one in every if one.name != "metastable"]


def test_the_lock_holds_a_version_of_all_that_is_asked_for(root: Path, project: dict[str, object]) -> None:
    locked = pins(root / "requirements-ray.txt") | pins(root / "requirements.lock")
    for one in asked(project):
        name = canonicalize_name(one.name)
        assert one.specifier.contains(locked[name]), f"{one} and requirements.lock"


def test_what_is_pinned_twice_is_pinned_to_the_same(root: Path) -> None:
    locked = pins(root / "requirements.lock")
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-tensorrt.txt"):
        for package, version in pins(root / name).items():
            assert locked[package] == version, f"{package} of {name} and requirements.lock"
    for package, version in pins(root / "requirements-ray.txt").items():  # what it adds is in no lock
        assert locked.get(package, version) == version, f"{package} of requirements-ray.txt and the lock"


def test_the_plain_build_of_pytorch_for_processors_will_do(project: dict[str, object]) -> None:
    [torch] = [one for one in asked(project) if one.name == "torch"]
    assert torch.specifier.contains("2.13.0+cpu")


def test_the_version_is_stated_once(project: dict[str, object]) -> None:
    assert "version" not in project
    assert project["dynamic"] == ["version"]


@pytest.mark.slow
def test_the_package_is_light_until_it_is_asked() -> None:
    code = (
        "import sys, metastable\n"
        "assert {'load', 'Defense', 'Verdict', '__version__'} <= set(dir(metastable))\n"
        "assert not {'torch', 'numpy', 'scipy', 'PIL', 'yaml'} & set(sys.modules)\n"
        "assert not hasattr(metastable, 'magic')\n"
        "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "assert callable(metastable.load) and 'torch' in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
