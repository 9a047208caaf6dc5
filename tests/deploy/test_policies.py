"""Versions side by side and the policy's file, as the launcher takes them; and a switch in a whole life."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import httpx
import pytest

from deploy import policies
from deploy.run_folder import Refused
from metastable.bundle import Bundle
from metastable.errors import BundleError, SettingsError
from metastable.images import Fit
from metastable.serving.backends.base import Served
from tests.deploy.test_local import refused, said, started
from tests.launched import PATIENCE
from tests.serving.door.conftest import png

SERVED = {
    version: Served("m", version, "d", (3, 4, 4), Fit(), ("x", "y"), ("fast", "none"), "fast", False, "torch")
    for version in ("1", "2")
}


@pytest.mark.slow
def test_each_version_has_its_own_name(tiny: Bundle, tiny_folder: Path) -> None:
    path = str(tiny_folder)
    assert policies.versions(tiny, []) == [tiny]
    found = policies.versions(tiny, [f"2.0={path}", f"3={path}"])
    assert [one.version for one in found] == ["1.2", "2.0", "3"]
    assert {one.digest for one in found} == {tiny.digest}
    with pytest.raises(Refused, match=r"is version 1\.2, as another bundle is"):
        policies.versions(tiny, [path])
    assert policies.versions(dataclasses.replace(tiny, version="1.1"), [path])[1].version == "1.2"
    with pytest.raises(Refused, match="a version is 1 to 64 characters"):
        policies.versions(tiny, [f"={path}"])
    with pytest.raises(BundleError):
        policies.versions(tiny, ["2.0=./nowhere"])


def test_a_policy_must_fit_what_is_served(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text('version: "3"')
    with pytest.raises(
        SettingsError, match="version 3, which is not loaded: use 1, 2, or load it with --also"
    ):
        policies.keeper_for(path, SERVED, proxies=False)
    path.write_text("split: {header: X-Account, arms: {a: {setting: none, weight: 1}}}")
    with pytest.raises(SettingsError, match="name it with --proxy, or leave"):
        policies.keeper_for(path, SERVED, proxies=False)
    assert policies.keeper_for(path, SERVED, proxies=True).policy.split is not None
    assert policies.keeper_for(None, SERVED, proxies=False).policy.split is None


def test_torchserve_has_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--also does nothing with --engine torchserve" in refused(capsys, "--also", "x")


@pytest.mark.slow
def test_a_wrong_policy_ends_the_start(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["--engine", "local", "--bundle", str(tiny_folder), "--runner", "torch", "--threads", "1"]
    path = tmp_path / "policy.yaml"
    path.write_text("flags: {best: mark}")
    assert "names setting best, which version 1.2 does not have" in refused(
        capsys, *local, "--policy", str(path)
    )


@pytest.mark.server
def test_a_hangup_reads_the_policy_again(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text('version: "1.2"')
    also = ["--also", f"2.0={tiny_folder}", "--policy", str(path)]
    given = ["--bundle", str(tiny_folder), "--runner", "torch", "--threads", "1", *also]
    log = tmp_path / "log"
    given += ["--log-file", str(log)]
    with started(*given) as (process, url):
        assert f"{path}, read again at kill -HUP {process.pid}" in said(process)
        assert process.stdout is not None

        def version() -> str:
            answer = httpx.post(url + "/classify", content=png(), trust_env=False, timeout=PATIENCE)
            found: str = answer.json()["model"]["version"]
            return found

        assert version() == "1.2"

        def told() -> list[str]:
            return [line for line in log.read_text().splitlines() if "the policy" in line]

        for count, (text, line, wanted) in enumerate(
            (
                ('version: "2.0"', " warning the policy was read again", "2.0"),
                ('version: "9"', " error the policy's version names version 9, which is not loaded", "2.0"),
                ('version: "1.2"', " warning the policy was read again", "1.2"),
            ),
            start=1,
        ):
            path.write_text(text)
            process.send_signal(signal.SIGHUP)
            ends = time.monotonic() + PATIENCE
            while len(told()) < count:
                assert time.monotonic() < ends
                time.sleep(0.02)
            assert line in told()[-1]
            assert version() == wanted
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, rest
        assert rest == "stopping\nstopped\n"
