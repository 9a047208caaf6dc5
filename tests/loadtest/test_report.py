import base64
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtest import arms, report
from loadtest.figures import read_report, to_json
from loadtest.items import Item, Source
from loadtest.report import LoadRun
from loadtest.schedule import Load
from tests.launched import free_port
from tests.loadtest.servers import Behaviour, item, serving

pytestmark = pytest.mark.slow

N = 24
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
PHONE = 390  # CSS pixels


def sources() -> list[Source]:
    """24 clean images, 21 answered rightly; 24 attacked ones, 6 answered rightly and half of them flagged."""
    clean = [item(5 if i < 3 else 1, 1, row=i, score=0.01 * i) for i in range(N)]
    attacked = [
        item(1 if i < 6 else 2, 1, source="pgd", row=i, score=0.9 if i % 2 else 0.1) for i in range(N)
    ]
    return [
        Source("clean", "clean", clean, {"file": "clean.npz", "digest": "c", "attack": "clean"}, ("x", "y")),
        Source("pgd", "transfer", attacked, {"file": "pgd.npz", "digest": "p", "bundle": "other"}),
    ]


def report_of(
    *urls: str,
    load: Load | None = None,
    folder: Path,
    rounds: int = 2,
    warmup: int = 2,
    given: str = "setting=fast",
) -> dict[str, Any]:
    """A run of one arm an address, written to `folder`; `given` is said of every arm."""
    both = sources()
    images: list[Item] = [image for pair in zip(*(s.items for s in both), strict=True) for image in pair]
    chosen = [arms.parse_arm(f"arm{i}:{given},url={url}", url) for i, url in enumerate(urls)]
    load = load or Load(scenario="constant", rate=150, timeout=0.5)
    blocks = arms.run(chosen, images, load, rounds=rounds, warmup=warmup, seed=0)
    run = LoadRun(
        arms=chosen,
        sources=both,
        items=images,
        load=load,
        rounds=rounds,
        warmup=warmup,
        seed=0,
        objective_ms=250.0,
        machine="a test",
        started="2026-01-01T00:00:00+00:00",
        blocks=blocks,
    )
    found: dict[str, Any] = to_json(report.write(folder, run))
    return found


def reasons_but_the_clients(found: dict[str, Any]) -> list[str]:
    """A busy machine makes the client late, which is true and not what a test is about."""
    return [reason for reason in found["reasons"] if "client was the bottleneck" not in reason]


def test_a_sound_server_gets_a_report_with_the_figures_that_are_known(tmp_path: Path) -> None:
    with serving(Behaviour()) as url:
        found = report_of(url, url, folder=tmp_path)
    assert reasons_but_the_clients(found) == []
    assert found["verdict"] == ("INVALID" if found["reasons"] else "VALID")
    for arm in found["arms"]:
        assert (arm["n"], arm["answered"], arm["warmup"]) == (2 * N, 2 * N, 4)
        assert arm["outcomes"] == {"answer": 2 * N}
        assert arm["natural"][0] == 21 / 24
        assert arm["robust"][0] == 6 / 24
        clean, pgd = arm["sources"]
        assert (clean["flagged"][0], pgd["flagged"][0]) == (0.0, 0.5)
        assert pgd["right_or_flagged"][0] == pytest.approx((6 + 9) / 24, abs=1e-4)
        # Half lie above all clean scores; of those at 0.1, 10 of 24 clean ones lie below and one beside.
        assert pgd["auroc"] == pytest.approx(0.5 + 0.5 * (10 + 0.5) / 24, abs=1e-4)
        assert arm["confusion"]["natural"][1] == [0, 21, 0, 0, 0, 3]
        assert arm["confusion"]["attacked"][1] == [0, 6, 18]
        assert arm["time_ms"]["purify"] == {"mean": 2.0, "p50": 2.0}
        assert arm["latency_ms"]["p50"]["low"] <= arm["latency_ms"]["p50"]["value"]
        assert arm["latency_ms"]["p99"]["high"] is None
        assert arm["latency_ms"]["p99"]["needed"] == 368
        assert arm["identity"]["setting"] == ["fast"]
    assert [row["p"] for row in found["pairs"][0]["accuracy"]] == [1.0, 1.0]
    assert any("too few to bound p95, p99" in note for note in found["notes"])
    assert any("made against another bundle" in note for note in found["notes"])
    written = json.loads((tmp_path / "report.json").read_text())
    assert to_json(read_report(written)) == written == found
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (2 * N + 4)
    assert sum(line["measured"] for line in lines) == 4 * N


def test_a_stalled_server_cannot_hide(tmp_path: Path) -> None:
    with serving(Behaviour(stall=(10, 0.5))) as url:
        found = report_of(url, folder=tmp_path, rounds=1, load=Load(scenario="constant", rate=60, timeout=5))
    arm = found["arms"][0]
    assert arm["outcomes"] == {"answer": 2 * N}
    # 60 a second are due during half a second; most of those wait for a good part of it.
    assert arm["latency_ms"]["p90"]["value"] > 250
    assert arm["goodput"]["share"][0] < 0.8
    assert reasons_but_the_clients(found) == []


@pytest.mark.parametrize(
    ("behaviour", "outcome", "said"),
    [
        (Behaviour(raw=b"garbage\r\n\r\n"), "garbage", "48 replies could not be read"),
        (
            Behaviour(reply=("200 OK", b"<script>alert(1)</script>")),
            "garbage",
            "48 replies could not be read",
        ),
        (
            Behaviour(reply=("503 Busy", b'{"error": {"code": "overloaded"}}')),
            "overloaded",
            "48 of 48 requests got no answer (overloaded 48)",
        ),
        (Behaviour(silent=True), "timeout", "48 of 48 requests got no answer (timeout 48)"),
        (None, "refused", "48 of 48 requests got no answer (refused 48)"),
    ],
    ids=["garbage", "no verdict", "503", "silent", "dead"],
)
def test_a_server_that_does_not_answer_gets_a_correct_report(
    tmp_path: Path, behaviour: Behaviour | None, outcome: str, said: str
) -> None:
    if behaviour is None:
        found = report_of(f"http://127.0.0.1:{free_port()}", folder=tmp_path)
    else:
        with serving(behaviour) as url:
            found = report_of(url, folder=tmp_path)
    arm = found["arms"][0]
    assert found["verdict"] == "INVALID"
    assert any(said in reason for reason in found["reasons"])
    assert arm["outcomes"] == {outcome: 2 * N}
    assert arm["latency_ms"]["p50"]["value"] is None
    assert arm["goodput"]["share"][0] == 0.0
    assert arm["natural"] is arm["robust"] is None
    page = (tmp_path / "report.html").read_text()
    assert "INVALID" in page
    assert "∞" in page


def test_another_setting_than_was_asked_for_is_no_valid_run(tmp_path: Path) -> None:
    with serving(Behaviour(setting="none")) as url:
        found = report_of(url, folder=tmp_path)
    assert "arm0: the setting fast was asked for and none answered" in found["reasons"]


def test_time_that_ends_early_is_noted(tmp_path: Path) -> None:
    with serving(Behaviour()) as url:
        found = report_of(url, folder=tmp_path, load=Load(scenario="constant", rate=100, seconds=0.1))
    arm = found["arms"][0]
    assert 0 < arm["n"] < 2 * N
    assert f"arm0: time ended after {arm['n']} of 48 images" in found["notes"]


def test_a_time_that_ends_in_the_warm_up_measures_nothing(tmp_path: Path) -> None:
    with serving(Behaviour()) as url:
        load = Load(scenario="constant", rate=100, seconds=0.01)
        found = report_of(url, folder=tmp_path, load=load)
    assert found["reasons"] == ["arm0: no request was measured; the time ended during the warm-up"]


def test_the_page_needs_no_network_and_repeats_no_markup(tmp_path: Path) -> None:
    with serving(Behaviour(setting="<script>alert(1)</script>")) as url:
        report_of(url, folder=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([a-z]+:)', page)
    assert set(addresses) == {"data:"}
    for data in re.findall(r"data:image/png;base64,([^\"]+)", page):
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_the_gallery_is_drawn_with_the_bundle_that_answered(tmp_path: Path, tiny: Any) -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        chosen = [arms.parse_arm("fast", url)]
        images = sources()[0].items
        blocks = arms.run(chosen, images, Load(scenario="single"), rounds=1, warmup=0, seed=0)
    same = dataclasses.replace(tiny, digest="d" * 64)
    plain = LoadRun(chosen, sources()[:1], images, Load(), 1, 0, 0, 1000.0, "m", "now", blocks)
    found = to_json(report.write(tmp_path, dataclasses.replace(plain, bundle=same)))
    with Image.open(tmp_path / "misses.png") as picture:
        assert picture.height > picture.width / 2
    assert "fast" in found["settings"]
    assert not any("no gallery" in note for note in found["notes"])
    found = to_json(report.write(tmp_path / "other", dataclasses.replace(plain, bundle=tiny)))
    assert not (tmp_path / "other" / "misses.png").exists()
    assert any("no gallery" in note for note in found["notes"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_a_browser_shows_the_page_on_a_phone(tmp_path: Path) -> None:
    """Every picture is drawn, and nothing is wider than the screen but tables that scroll by themselves."""
    with serving(Behaviour()) as url:
        report_of(url, url, folder=tmp_path)
    page = (tmp_path / "report.html").read_text()
    look = """<script>addEventListener("load", () => {
      const seen = document.getElementById("phone").contentDocument;
      const images = [...seen.images].map(i => i.complete && i.naturalWidth > 0 && i.clientWidth <= %d);
      document.title = JSON.stringify({width: seen.documentElement.scrollWidth, images});
    })</script><iframe id="phone" srcdoc="%s" style="border: 0; width: %dpx; height: 800px"></iframe>"""
    shown = page.replace("&", "&amp;").replace('"', "&quot;")
    outer = tmp_path / "phone.html"
    outer.write_text(f"<!doctype html><title>not yet</title>{look % (PHONE, shown, PHONE)}")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=10000", "--dump-dom", outer.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    seen = json.loads(title[1])
    assert seen["images"] == [True] * 4  # frontier, latency, timeline, ROC
    assert seen["width"] <= PHONE
