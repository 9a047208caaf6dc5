"""docs/bring-your-own.md does what it says: its files are written, its commands run, its server asked."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from metastable import bundle
from tests.launched import PATIENCE, REPOSITORY, launched

PAGE = (REPOSITORY / "docs" / "bring-your-own.md").read_text()
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CHECKOUT = ("deploy", "export", "handlers", "metastable", "model_store", "model-config.yaml")


def one(info: str) -> str:
    [text] = [text for found, text in BLOCKS if found == info]
    return text


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, in which the page's files are written and its `sh` commands have run."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in CHECKOUT:
        (folder / name).symlink_to(REPOSITORY / name)
    for info, text in BLOCKS:
        if info.startswith("python file="):
            path = folder / info.removeprefix("python file=")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (folder / "bin").mkdir()
    for name, words in (("python", ""), ("metastable", "-m metastable ")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        (folder / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    printed = []
    for info, text in BLOCKS:
        if info == "sh":
            command = ["bash", "-euo", "pipefail", "-c", text]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            printed.append(done.stdout)
    (folder / "printed").write_text("".join(printed))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_the_bundle_says_what_was_found(checkout: Path) -> None:
    lines = (checkout / "printed").read_text().splitlines()
    [found] = [json.loads(line) for line in lines if line.startswith('{"command": "bring"')]
    assert found["looked"]["accuracy"] > 0.85
    assert found["looked"]["n"] == 160
    assert found["judged"]["n"] == 10
    assert found["classifier"] == "onnx"
    assert found["resized"] is False
    loaded = bundle.load(checkout / "mine" / "shapes")
    assert loaded.classes == ["disc", "square", "cross", "stripes"]
    assert list(loaded.provenance.checks) == [*found["checks"], *found["changes"]]
    assert str(checkout) not in (checkout / "mine" / "shapes" / "bundle.json").read_text()
    assert str(checkout).encode() not in (checkout / "mine" / "shapes" / "classifier.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_it_is_attacked_and_its_purifier_hardened(checkout: Path) -> None:
    lines = (checkout / "printed").read_text().splitlines()
    [found] = [json.loads(line) for line in lines if line.startswith('{"command": "robust"')]
    assert [(one["setting"], one["n"]) for one in found["suites"]] == [("none", 2), ("fast", 2)]
    assert found["suites"][0]["attacks"][0]["gradient"] == "bare"
    mine, hardened = (bundle.load(checkout / "mine" / name) for name in ("shapes", "hardened"))
    assert hardened.parts["classifier"] == mine.parts["classifier"]
    assert hardened.classes == mine.classes
    assert set(hardened.networks) == {"purifier", "score"}


@pytest.mark.server
@pytest.mark.timeout(3 * PATIENCE)
def test_the_server_answers_with_its_class_names(checkout: Path) -> None:
    serve, ask = shlex.split(one("sh serve")), shlex.split(one("sh ask"))
    archive, sample = (checkout / serve[serve.index(flag) + 1] for flag in ("--archive", "--sample"))
    with (checkout / "mine" / "labels.csv").open() as file:
        truths = {row["file"]: row["label"] for row in csv.DictReader(file)}
    shown = checkout / ask[ask.index("--data-binary") + 1].removeprefix("@")
    name, value = ask[ask.index("-H") + 1].split(": ")
    with launched(checkout / "served", archive, "--sample", str(sample)) as server:
        server.until_ready()
        url = ask[-1].replace(":8080", f":{server.ports[0]}")
        right = 0
        for path in [shown, *sorted(shown.parent.iterdir())[2:11]]:
            headers = {name: value, "X-Metastable-Setting": "fast"}
            reply = httpx.post(
                url, content=path.read_bytes(), headers=headers, trust_env=False, timeout=PATIENCE
            )
            assert reply.status_code == 200, reply.text
            verdict = reply.json()
            assert {each["class"] for each in verdict["top"]} <= set(truths.values())
            assert verdict["model"]["name"] == "shapes"
            right += verdict["class"] == truths[path.name]
        server.process.send_signal(signal.SIGTERM)
        status, output = server.finish()
        assert status == 0, output
    assert right >= 7
