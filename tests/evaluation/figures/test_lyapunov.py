import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metastable import datasets
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import lyapunov


def test_a_linear_map_has_the_logarithm_of_its_largest_factor() -> None:
    """diag(1.3, 0.5, 0.2) around a fixed point: differences turn to the first axis and grow by 1.3."""
    factors = torch.tensor([1.3, 0.5, 0.2], dtype=torch.float64)

    def step(x: Tensor, copy: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return torch.ones_like(x), 1 + (copy - x) * factors

    x = torch.ones(2, 3, dtype=torch.float64)
    found, _ = lyapunov.maximal_exponent(step, x, steps=200, discard=100, distance=1e-6)
    assert torch.allclose(found, torch.full((2,), math.log(1.3), dtype=torch.float64), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("r", "exponent"), [(4.0, math.log(2)), (3.2, -0.916)])
def test_the_logistic_map_is_chaotic_or_ordered_as_is_known(r: float, exponent: float) -> None:
    """r = 4: ln 2 exactly.  r = 3.2: a cycle of two, with ln |f'| averaged over it."""

    def step(x: Tensor, copy: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return r * x * (1 - x), r * copy * (1 - copy)

    x = torch.linspace(0.11, 0.43, 16, dtype=torch.float64)[:, None]
    found, last = lyapunov.maximal_exponent(step, x, steps=4000, discard=100, distance=1e-9)
    assert float(found.mean()) == pytest.approx(exponent, abs=0.01)
    assert 0 <= float(last.min()) <= float(last.max()) <= 1


@pytest.mark.parametrize("curvature", [1.0, -1.0])
def test_langevin_in_a_quadratic_well_grows_with_its_curvature_whatever_the_noise(curvature: float) -> None:
    """U = c |x|^2 / 2: every step multiplies a difference by 1 - c tau^2 / 2."""
    tau = 0.2
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    for eta in (0.0, 1.0):
        step = lyapunov.langevin_pair(lambda v: -curvature * v, tau, eta, seed=0)
        found, last = lyapunov.maximal_exponent(step, x, steps=50, discard=0, distance=1e-3)
        wanted = math.log(1 - curvature * tau**2 / 2)
        assert torch.allclose(found, torch.full((2,), wanted, dtype=torch.float64), atol=1e-9)
        assert bool((last != 0).any()) == (eta > 0)


@pytest.mark.slow
def test_the_command_resumes_by_point(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    test = datasets.ImageSet("noise", "test", images, torch.tensor([1, 2, 3]), [])
    monkeypatch.setattr(datasets, "load", lambda *_: test)

    def run(*more: str) -> list[dict[str, float]]:
        shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--work", str(tmp_path / "w")]
        asked = ["--n", "2", "--steps", "5", "--discard", "2", "--out", str(tmp_path / "l.json")]
        monkeypatch.setattr("sys.argv", ["x", "figure", "lyapunov", *shared, *asked, *more])
        command.main()
        rows: list[dict[str, float]] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        return rows

    first = run("--eta", "1,0")
    assert [row["eta"] for row in first] == [0, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lyapunov, "maximal_exponent", None)
        assert run("--eta", "0,1") == first
    assert run("--eta", "0,0.5,1")[::2] == first
    assert (tmp_path / "l.png").exists()
    with pytest.raises(SystemExit):
        run("--network", "dream")
    with pytest.raises(SystemExit):
        run("--tau", "0.1")
