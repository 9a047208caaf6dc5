"""The wheel: one package, bundles and all, that answers where only its dependencies are installed."""

import importlib.metadata
import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metastable.bundle import shipped
from metastable.version import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ASK = """
import json, sys
import metastable
light = "torch" not in sys.modules
with metastable.load("cifar10", runner="torch") as defense:
    [verdict] = defense([sys.argv[1]], setting="fast")
try:
    metastable.load("cifar100")
except metastable.errors.BundleError as error:
    refused = str(error)
print(json.dumps([metastable.__file__, metastable.__version__, light, verdict.class_name, refused]))
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network: the backend is one of the development's requirements."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(root), "--no-deps", "--no-build-isolation", "--wheel-dir", str(out))
    [made] = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and its dependencies lent by ours."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    pip("--python", str(interpreter), "install", "--no-deps", str(wheel))
    lent = home / "lent"
    lent.mkdir()
    for name in needed(dependencies(wheel)):
        for path in top_level(name):
            (lent / path.name).symlink_to(path)
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(f"{lent}\n")
    return interpreter


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def dependencies(wheel: Path) -> list[Requirement]:
    """What the wheel asks for without an extra."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().split("\n\n")[0].splitlines()
    given = [Requirement(line.split(": ", 1)[1]) for line in lines if line.startswith("Requires-Dist: ")]
    return [one for one in given if one.marker is None or one.marker.evaluate({"extra": ""})]


def needed(requirements: list[Requirement]) -> set[str]:
    """The distributions of these requirements and of all under them, each in the version asked for."""
    found: set[str] = set()
    while requirements:
        one = requirements.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        assert one.specifier.contains(importlib.metadata.version(name)), one
        found.add(name)
        requirements += map(Requirement, importlib.metadata.requires(name) or [])
    return found


def top_level(name: str) -> set[Path]:
    """The folders and files in site-packages that belong to a distribution."""
    distribution = importlib.metadata.distribution(name)
    parts = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return {Path(str(distribution.locate_file(part))) for part in parts}


def test_one_package_lands_in_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"metastable", f"metastable-{__version__}.dist-info"}
    assert "metastable/py.typed" in names
    bundles = {name.split("/")[2] for name in names if name.startswith("metastable/_bundles/")}
    assert bundles == set(shipped.names()), (
        "tool.hatch.build in pyproject.toml lists the bundles of model_store"
    )


def test_an_installed_library_answers(python: Path, root: Path, tmp_path: Path) -> None:
    sample = root / "samples" / "cat.png"
    command = [str(python), "-I", "-W", "error", "-c", ASK, str(sample)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, version, light, name, refused = json.loads(done.stdout)
    assert Path(file).is_relative_to(python.parent.parent)
    assert (version, light, name) == (__version__, True, "cat")
    names = "cifar10, cifar10-hardened, cifar10-langevin, mnist, mnist-madry, mnist-purified, natural"
    assert f"name one of {names}" in refused


@pytest.mark.parametrize(
    "folder", ["handlers", "export", "deploy", "loadtest", "benchmarks", "demo", "tests"]
)
def test_folders_of_the_checkout_are_not_installed(python: Path, folder: str, tmp_path: Path) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({folder!r}) is not None)"
    assert subprocess.run([str(python), "-I", "-c", code], cwd=tmp_path).returncode == 0
