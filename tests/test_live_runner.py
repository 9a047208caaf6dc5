"""A real server on 8-bit graphs: one word of the configuration is another."""

import signal
from pathlib import Path

import httpx
import pytest

from export import mar
from tests.launched import PATIENCE, REPOSITORY, launched

pytestmark = pytest.mark.server


@pytest.mark.timeout(3 * PATIENCE)
def test_a_server_on_quantised_graphs_knows_the_cat(tmp_path: Path) -> None:
    text = (REPOSITORY / "model-config.yaml").read_text()
    config, archive = tmp_path / "model-config.yaml", tmp_path / "metastable.mar"
    config.write_text(text.replace("runner: auto", "runner: openvino-int8"))
    store, sample = REPOSITORY / "model_store", REPOSITORY / "samples" / "cat.png"
    mar.build(store / "cifar10", config, archive, store / "artifacts" / "cifar10")
    with launched(tmp_path, archive, "--sample", str(sample)) as server:
        server.until_ready()
        reply = httpx.post(
            f"http://127.0.0.1:{server.ports[0]}/classify",
            content=sample.read_bytes(),
            headers={"Content-Type": "application/octet-stream"},
            trust_env=False,
            timeout=PATIENCE,
        )
        assert reply.status_code == 200, reply.text
        verdict = reply.json()
        assert (verdict["runner"], verdict["class"]) == ("openvino-int8", "cat")
        server.process.send_signal(signal.SIGTERM)
        status, output = server.finish()
        assert status == 0, output
