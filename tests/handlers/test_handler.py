import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlers.handler import MetastableHandler
from metastable.errors import BundleError


class Context:
    """The calls of TorchServe's context that a handler makes."""

    def __init__(self, model_dir: Path, headers: list[dict[str, str]]) -> None:
        self.model_yaml_config: dict[str, Any] = {"handler": {"threads": 1, "allow_seed": True}}
        self.system_properties = {"model_dir": str(model_dir)}
        self._headers = headers
        self.rows = list(range(len(headers)))  # which requests this call is about
        self.status: dict[int, tuple[int, str]] = {}
        self.types: dict[int, str] = {}

    def get_request_id(self, index: int) -> str:
        return f"id{self.rows[index]}"

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self._headers[self.rows[index]]

    def set_response_status(self, *, code: int, phrase: str, idx: int) -> None:
        self.status[self.rows[idx]] = (code, phrase)

    def set_response_content_type(self, index: int, value: str) -> None:
        self.types[self.rows[index]] = value


@pytest.fixture
def model_dir(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("METASTABLE_METRICS_PORT", raising=False)
    shutil.copytree(tiny_folder, tmp_path / "bundle")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [False, True])
def test_rows_in_json_out_each_with_its_status(
    model_dir: Path, root: Path, continuous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.continuous.install", lambda: None)
    image = (root / "samples" / "cat.png").read_bytes()
    context = Context(model_dir, [{"X-Metastable-Seed": "3"}, {}, {"X-Metastable-Top-K": "99"}])
    context.model_yaml_config["continuousBatching"] = continuous
    handler = MetastableHandler()
    handler.initialize(context)
    rows: list[dict[str, Any]] = [
        {"body": bytearray(image)},
        {"body": bytearray()},
        {"body": bytearray(image)},
    ]
    bodies: dict[int, str] = {}
    calls = 0
    while len(bodies) < 3:
        calls += 1
        waiting = [i for i in range(3) if i not in bodies]
        context.rows = waiting
        replies = handler.handle([rows[i] for i in waiting], context)
        bodies |= {i: body for i, body in zip(waiting, replies, strict=True) if body}
    assert continuous or calls == 1
    assert [json.loads(bodies[i])["request_id"] for i in range(3)] == ["id0", "id1", "id2"]
    assert [context.status[i][0] for i in range(3)] == [200, 400, 422]
    assert all(phrase.isascii() for _, phrase in context.status.values())
    assert set(context.types.values()) == {"application/json"}


def test_a_damaged_bundle_stops_the_worker_with_a_clear_error(model_dir: Path) -> None:
    with (model_dir / "bundle" / "settings.yaml").open("a") as file:
        file.write("\n")
    context = SimpleNamespace(model_yaml_config=None, system_properties={"model_dir": str(model_dir)})
    with pytest.raises(BundleError, match=r"settings\.yaml"):
        MetastableHandler().initialize(context)
