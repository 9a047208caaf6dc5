import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from metastable import cuda_noise, noise
from metastable.attacks.target import Eot, WhiteBox
from metastable.bundle import Bundle
from metastable.defense import Defended, defend, purify
from metastable.settings import Setting

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SEEDS = [7, 8, 9, 10]


def run(tiny: Bundle, setting: str | Setting, rows: list[int], flags: list[bool] | None = None) -> Defended:
    chosen = tiny.settings[setting] if isinstance(setting, str) else setting
    return defend(
        IMAGES[rows],
        [SEEDS[i] for i in rows],
        chosen,
        classifier=tiny.classifier,
        scores=tiny.scores,
        flagged=torch.tensor(flags or [False] * len(rows)),
    )


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=5), name=st.sampled_from(["fast", "langevin"]))
def test_an_images_answer_does_not_depend_on_its_batch(tiny: Bundle, rows: list[int], name: str) -> None:
    together = run(tiny, name, rows)
    for at, row in enumerate(rows):
        alone = run(tiny, name, [row])
        assert torch.allclose(together.outputs[at], alone.outputs[0], atol=1e-4)
        assert torch.allclose(together.purified[at], alone.purified[0], atol=1e-5)


@pytest.mark.slow
def test_chunks_do_not_change_answers(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tiny, "fast", [0, 1, 2, 3])
    monkeypatch.setattr("metastable.defense.CHAINS_AT_ONCE", 5)
    assert torch.allclose(run(tiny, "fast", [0, 1, 2, 3]).outputs, whole.outputs, atol=1e-4)


def test_chains_and_seeds_differ(tiny: Bundle) -> None:
    outputs = run(tiny, "fast", [0, 0]).outputs  # same image and seed twice
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0, 0], outputs[0, 1], atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_step_of_langevin_takes_the_noise_off(tiny: Bundle, steps: int) -> None:
    setting = Setting.of("d", "langevin", network="energy", steps=steps, tau=0.02, denoise=0.05)
    key, score = (7, 0), tiny.scores["energy"]
    x = IMAGES[:1]
    for t in range(steps - 1):
        z = noise.normal([key], t, (3, 32, 32), x.device)
        x = x + 0.5 * 0.02**2 * score(x) + 0.02 * z
    wanted = x + 0.05**2 * score(x)
    found, made = purify(IMAGES[:1], [key], setting, score, torch.tensor([False]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert made.tolist() == [steps]


@pytest.mark.slow
def test_the_mean_is_over_chains_of_logits_or_of_softmax(tiny: Bundle) -> None:
    logits = run(tiny, "fast", [0])
    assert torch.allclose(logits.mean[0], logits.outputs[0].mean(0))
    assert torch.allclose(logits.probabilities, logits.mean.softmax(1))
    shares = run(tiny, "softmax", [0])
    assert torch.allclose(shares.outputs.sum(2), torch.ones(1, 2), atol=1e-5)
    assert torch.equal(shares.probabilities, shares.mean)


@pytest.mark.slow
def test_log_softmax_averaging_differs_from_logits_by_a_number_an_image(tiny: Bundle) -> None:
    """So it has the same label, margin and probabilities."""
    logits = run(tiny, "fast", [0, 1, 2])
    logs = run(tiny, dataclasses.replace(tiny.settings["fast"], average="log_softmax"), [0, 1, 2])
    offset = logits.mean - logs.mean
    assert torch.allclose(offset, offset[:, :1].expand_as(offset), atol=1e-5)
    assert torch.allclose(logs.outputs.exp().sum(2), torch.ones(3, logs.outputs.shape[1]), atol=1e-5)
    assert torch.allclose(logs.probabilities, logits.probabilities, atol=1e-6)
    assert torch.equal(logs.labels, logits.labels)


@pytest.mark.slow
def test_noise_alone_is_adp_without_its_updates(tiny: Bundle) -> None:
    noise = Setting.of("noise", "noise", chains=3, steps=1, sigma=0.2, sigma_unflagged=0.02)
    idle = Setting.of("idle", "adp", chains=3, steps=1, sigma=0.2, sigma_unflagged=0.02, stop=1e9)
    for flags in ([True, False], [False, True]):
        alone, wanted = run(tiny, noise, [0, 1], flags), run(tiny, idle, [0, 1], flags)
        assert torch.equal(alone.purified, wanted.purified)
    without = defend(
        IMAGES[:1], [7], noise, classifier=tiny.classifier, scores={}, flagged=torch.tensor([True])
    )
    assert without.outputs.shape == (1, 3, 10)


def test_the_noise_factor_scales_how_far_noise_carries(tiny: Bundle) -> None:
    def purified(eta: float) -> torch.Tensor:
        setting = Setting.of("hot", "langevin", network="energy", chains=8, steps=1, tau=0.01, eta=eta)
        return run(tiny, setting, [0]).purified

    still = purified(0.0)
    assert torch.allclose(purified(2.0) - still, 2 * (purified(1.0) - still), atol=1e-6)
    assert float((purified(1.0) - still).norm()) > 0.01


def test_margin_and_its_standard_error_by_hand() -> None:
    outputs = torch.tensor([[[3.0, 1.0, 0.0], [5.0, 2.0, 0.0], [4.0, 0.0, 9.0]]])  # means 4, 1, 3
    value, error = Defended(outputs, torch.zeros(1), torch.zeros(1, 3), "logits").margins()
    differences = torch.tensor([3.0, 5.0, -5.0])
    assert value.item() == pytest.approx(1.0)
    assert error.item() == pytest.approx(differences.std().item() / 3**0.5)
    _, unknown = Defended(outputs[:, :1], torch.zeros(1), torch.zeros(1, 1), "logits").margins()
    assert unknown.isnan().all()


def test_flagged_images_get_more_noise(tiny: Bundle) -> None:
    identity = Setting.of(
        "loud", "adp", chains=8, steps=1, sigma=0.2, sigma_unflagged=0.02, stop=1e9
    )  # a stop so high that no chain moves: what is left is the injected noise
    quiet = run(tiny, identity, [0], [False]).purified - IMAGES[:1]
    loud = run(tiny, identity, [0], [True]).purified - IMAGES[:1]
    assert float(loud.std() / quiet.std()) > 5


def test_no_defense_is_the_bare_classifier(tiny: Bundle) -> None:
    result = run(tiny, "none", [0, 1, 2])
    with torch.inference_mode():
        assert torch.equal(result.labels, tiny.classifier(IMAGES[:3]).argmax(1))
    assert torch.equal(result.purified, IMAGES[:3])
    assert result.outputs.shape == (3, 1, 10)
    assert result.steps.sum() == 0


def test_between_reports_progress_and_may_give_up(tiny: Bundle) -> None:
    seen: list[tuple[str, float]] = []

    def stop(stage: str, share: float) -> None:
        seen.append((stage, share))
        if stage == "purify":
            raise TimeoutError

    with pytest.raises(TimeoutError):
        defend(
            IMAGES, SEEDS, tiny.settings["fast"], classifier=tiny.classifier, scores=tiny.scores,
            flagged=torch.zeros(4, dtype=torch.bool), between=stop,
        )  # fmt: skip
    assert seen == [("purify", 1.0)]


def test_on_a_gpu_keys_are_packed_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without content, which may say that they lie on a GPU: all but the drawing itself."""
    packed, drawn = list[int](), list[int]()
    pack = cuda_noise.pack

    def counted(keys: Sequence[noise.ChainKey], steps: Sequence[int]) -> Tensor:
        packed.append(len(keys))
        return pack(keys, steps)

    monkeypatch.setattr(cuda_noise, "pack", counted)
    monkeypatch.setattr(cuda_noise, "at", lambda rows, step: drawn.append(step) or rows)
    monkeypatch.setattr(cuda_noise, "draw", lambda rows, shape: torch.zeros(rows.shape[1], *shape).to(x))
    setting = Setting.of("x", "langevin", network="energy", chains=2, steps=30, tau=0.1)
    attacked = Eot(WhiteBox(setting, torch.nn.Flatten(), torch.sin), 2, "bpda")
    keys, flagged = [(1, 2), (3, 4)], torch.zeros(2, dtype=torch.bool)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.zeros(2, 3, 32, 32, device="cuda")
        purify(x, keys, setting, torch.sin, flagged)
        attacked._purify(x, keys, flagged)
    assert drawn == [*range(30)] * 2
    assert packed == [2, 2]


def test_the_library_reaches_no_server(root: Path) -> None:
    for path in (root / "metastable").rglob("*.py"):
        assert "import ts" not in path.read_text()
