"""docs/library.md and the README's lines of Python do what they say."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples name sample images; a runner with threads of its own takes PyTorch's away."""
    monkeypatch.chdir(root)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_page_is_true(root: Path) -> None:
    found = doctest.testfile(
        str(root / "docs" / "library.md"),
        module_relative=False,
        encoding="utf-8",
        optionflags=doctest.ELLIPSIS,
    )
    assert found.attempted > 15
    assert found.failed == 0


def test_the_readme_is_true(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(
        r"^```python\n(.*?)^```$", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cat", "dog"]
