"""Arms and rules for flagged images, asked of running doors; versions that change places under traffic."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.errors import SettingsError
from metastable.serving.backends.base import Judged, Question, Room
from metastable.serving.door.clients import Proxies
from metastable.serving.door.schemas import Verdict
from metastable.serving.policy.keeper import Keeper
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running

pytestmark = pytest.mark.slow

SPLIT = """
split:
  header: X-Account
  salt: a salt for this test alone
  arms: {many: {setting: fast, weight: 3}, few: {setting: none, weight: 1}}
"""


def keeper(folder: Path, text: str) -> Keeper:
    path = folder / "policy.yaml"
    path.write_text(text)
    return Keeper(path)


def post(served: Running, path: str = "/classify", **given: Any) -> httpx.Response:
    given.setdefault("content", png())
    if "files" in given or "json" in given:
        del given["content"]
    return httpx.post(served.url + path, timeout=PATIENCE, trust_env=False, **given)


def infer(served: Running, count: int = 1, path: str = "/v2/models/metastable/infer") -> httpx.Response:
    data = np.random.default_rng(0).random((count, 3, 32, 32)).round(3).ravel().tolist()
    tensor = {"name": "image", "shape": [count, 3, 32, 32], "datatype": "FP32", "data": data}
    return post(served, path, json={"inputs": [tensor]})


# --- arms ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    held = keeper(tmp_path_factory.mktemp("split"), SPLIT)
    with running(tiny, keeper=held, proxies=Proxies(["127.0.0.1"])) as found:
        yield found


def in_arm(split: Running, arm: str, outcome: str) -> float:
    """Images of an arm that were counted, over all settings."""
    [family] = [one for one in split.registry.collect() if one.name == "metastable_requests"]
    wanted = {"arm": arm, "outcome": outcome}
    return sum(
        one.value
        for one in family.samples
        if one.name.endswith("_total") and wanted.items() <= one.labels.items()
    )


def test_a_client_keeps_its_arm_which_the_answer_says(split: Running) -> None:
    policy = split.door.keeper.policy
    assert policy.split is not None
    before = {arm: in_arm(split, arm, "ok") for arm in ("many", "few")}
    names = [f"account {i}" for i in range(12)]
    seen = Counter[str]()
    for name in names * 2:
        answer = post(split, headers={"X-Account": name})
        arm = policy.split.arm(f"x-account {name}")
        assert answer.headers["X-Metastable-Arm"] == answer.json()["arm"] == arm.name
        assert answer.json()["setting"] == arm.setting
        Verdict.model_validate(answer.json())
        seen[arm.name] += 1
    assert set(seen) == {"many", "few"}
    for arm_name, count in seen.items():
        assert in_arm(split, arm_name, "ok") - before[arm_name] == count


def test_who_names_a_setting_is_in_no_arm(split: Running) -> None:
    ways = [
        post(split, headers={"X-Metastable-Setting": "softmax"}),
        post(split, params={"setting": "softmax"}),
        post(split, files={"image": png()}, data={"setting": "softmax"}),
    ]
    for answer in ways:
        assert answer.json()["setting"] == "softmax"
        assert "arm" not in answer.json()
        assert "X-Metastable-Arm" not in answer.headers


def test_refusals_say_the_arm_and_count_in_it(split: Running) -> None:
    arm = post(split).headers["X-Metastable-Arm"]
    before = in_arm(split, arm, "unsupported_image")
    answer = post(split, content=b"no image")
    assert answer.status_code == 415
    assert answer.headers["X-Metastable-Arm"] == arm
    assert in_arm(split, arm, "unsupported_image") == before + 1


def test_all_images_of_a_request_are_in_one_arm(split: Running) -> None:
    answer = post(split, files=[("images", png(i)) for i in range(3)])
    assert {one["arm"] for one in answer.json()["results"]} == {answer.headers["X-Metastable-Arm"]}


def test_the_protocol_says_the_arm_too(split: Running) -> None:
    answer = infer(split)
    assert answer.json()["parameters"] == {"arm": answer.headers["X-Metastable-Arm"]}
    named = infer(split, path="/v2/models/metastable/versions/1.2/infer")
    assert "parameters" not in named.json()


def test_a_header_is_believed_from_a_trusted_proxy_alone(tiny: Bundle, tmp_path: Path) -> None:
    with running(tiny, keeper=keeper(tmp_path, SPLIT)) as served:
        arms = {post(served, headers={"X-Account": str(i)}).json()["arm"] for i in range(12)}
    assert len(arms) == 1


def test_a_header_that_is_there_twice_is_not_believed(split: Running) -> None:
    alone = post(split).json()["arm"]
    for i in range(12):
        answer = post(split, headers=[("X-Account", str(i)), ("X-Account", "mine")])
        assert answer.json()["arm"] == alone


def test_who_names_what_it_would_get_anyway_stays_in_its_arm(tiny: Bundle, tmp_path: Path) -> None:
    held = keeper(tmp_path, "clients_may_name: []\n" + SPLIT)
    other = dataclasses.replace(tiny, version="2.0")
    with running(tiny, also=[other], keeper=held) as served:
        named = infer(served, path="/v2/models/metastable/versions/1.2/infer")
        assert named.json()["parameters"] == {"arm": named.headers["X-Metastable-Arm"]}
        refused = infer(served, path="/v2/models/metastable/versions/2.0/infer")
        assert refused.status_code == 422
        assert refused.json()["error"] == (
            "which version answers is the operator's choice here: send the request without one"
        )


def test_an_operator_says_which_settings_clients_may_name(tiny: Bundle, tmp_path: Path) -> None:
    held = keeper(tmp_path, "clients_may_name: [none]\n" + SPLIT)
    with running(tiny, keeper=held) as served:
        assert post(served).json()["setting"] in ("fast", "none")
        assert post(served, params={"setting": "none"}).json()["setting"] == "none"
        refused = post(served, params={"setting": "fast"})
        assert refused.status_code == 422
        assert refused.json()["error"]["message"] == "setting must be one of none"
        (tmp_path / "policy.yaml").write_text("clients_may_name: []")
        held.reload()
        assert post(served).json()["setting"] == "fast"
        assert "leave it out" in post(served, params={"setting": "none"}).json()["error"]["message"]


# --- flags ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubted(tiny: Bundle) -> tuple[Bundle, bytes, bytes]:
    """A bundle that flags one of two images, and these: the honest one, then the flagged one."""
    with running(tiny) as served:
        found = sorted((post(served, content=png(i)).json()["anomaly"]["score"], i) for i in range(6))
    (low, honest), (high, flagged) = found[0], found[-1]
    assert tiny.anomaly is not None
    between = dataclasses.replace(tiny.anomaly, threshold=(low + high) / 2)
    return dataclasses.replace(tiny, anomaly=between), png(honest), png(flagged)


@pytest.fixture(scope="module")
def ruled(
    doubted: tuple[Bundle, bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    text = """
    flags:
      fast: {action: stronger, setting: softmax}
      langevin: mark
      none: {action: refuse, by: score}
    """
    with running(doubted[0], keeper=keeper(tmp_path_factory.mktemp("ruled"), text)) as found:
        yield found


def acted(served: Running, setting: str, action: str) -> float:
    return served.count("flag_policy_total", setting=setting, action=action)


def test_a_flagged_image_is_marked(ruled: Running, doubted: tuple[Bundle, bytes, bytes]) -> None:
    _, honest, flagged = doubted
    before = acted(ruled, "langevin", "mark")
    for image, said in ((honest, None), (flagged, {"action": "mark"})):
        answer = post(ruled, content=image, params={"setting": "langevin"}).json()
        assert answer.get("flag_policy") == said
        assert answer["setting"] == "langevin"
        Verdict.model_validate(answer)
    assert acted(ruled, "langevin", "mark") == before + 1


def test_a_flagged_image_is_refused(ruled: Running, doubted: tuple[Bundle, bytes, bytes]) -> None:
    _, honest, flagged = doubted
    before = (
        acted(ruled, "none", "refuse"),
        ruled.count("requests_total", setting="none", outcome="flagged", arm=""),
    )
    assert post(ruled, content=honest, params={"setting": "none"}).status_code == 200
    answer = post(ruled, content=flagged, params={"setting": "none"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "flagged"
    after = (
        acted(ruled, "none", "refuse"),
        ruled.count("requests_total", setting="none", outcome="flagged", arm=""),
    )
    assert after == (before[0] + 1, before[1] + 1)


def test_a_flagged_image_goes_on_to_a_stronger_setting(
    ruled: Running, doubted: tuple[Bundle, bytes, bytes]
) -> None:
    _, honest, flagged = doubted
    before = acted(ruled, "fast", "stronger")
    seed = {"seed": "5"}
    assert "flag_policy" not in post(ruled, content=honest, params=seed).json()
    answer = post(ruled, content=flagged, params=seed).json()
    Verdict.model_validate(answer)
    assert answer["setting"] == "softmax"
    assert answer["flag_policy"]["action"] == "stronger"
    assert answer["flag_policy"]["first"]["setting"] == "fast"
    assert answer["flag_policy"]["first"]["chains"] == 3
    alone = post(ruled, content=flagged, params=seed | {"setting": "softmax"}).json()
    assert answer["top"] == alone["top"]
    assert acted(ruled, "fast", "stronger") == before + 1


def test_each_image_has_its_own_rule(ruled: Running, doubted: tuple[Bundle, bytes, bytes]) -> None:
    _, honest, flagged = doubted
    sent = [("images", one) for one in (honest, flagged, honest)]
    first, second, third = post(ruled, files=sent, data={"setting": "none"}).json()["results"]
    assert (first["label"], third["setting"]) == (third["label"], "none")
    assert second["error"]["code"] == "flagged"


def test_the_protocol_follows_the_rules(ruled: Running, doubted: tuple[Bundle, bytes, bytes]) -> None:
    import tritonclient.http as triton

    _, honest, flagged = doubted
    given = triton.InferInput("image", [2], "BYTES")
    given.set_data_from_numpy(np.array([honest, flagged], dtype=np.object_), binary_data=True)
    with triton.InferenceServerClient(f"127.0.0.1:{ruled.port}") as client:
        found = client.infer("metastable", [given])
        texts = {
            name: [
                str(np.char.decode(np.bytes_(one)) if isinstance(one, bytes) else one)
                for one in found.as_numpy(name)
            ]
            for name in ("action", "setting")
        }
        assert texts == {"action": ["answer", "stronger"], "setting": ["fast", "softmax"]}
        with pytest.raises(triton.InferenceServerException, match="anomalous"):
            client.infer("metastable", [given], parameters={"setting": "none"})


def test_who_cannot_have_the_stronger_answer_gets_no_weaker_one(
    doubted: tuple[Bundle, bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, honest, flagged = doubted
    held = keeper(tmp_path, "flags: {fast: {action: stronger, setting: softmax}}")
    with running(bundle, keeper=held, limits=EngineLimits()) as served:
        admit = served.backend.admit

        async def busy(setting: str) -> Any:
            from metastable.errors import Overloaded

            if setting == "softmax":
                raise Overloaded("too much work waits", 3.0)
            return await admit(setting)

        monkeypatch.setattr(served.backend, "admit", busy)
        assert post(served, content=honest).status_code == 200
        answer = post(served, content=flagged)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"
    assert answer.headers["Retry-After"] == "3"


def test_a_stronger_answer_that_is_cut_short_is_none(
    doubted: tuple[Bundle, bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, honest, flagged = doubted
    held = keeper(tmp_path, "flags: {fast: {action: stronger, setting: softmax}}")
    with running(bundle, keeper=held) as served:
        ask = served.backend.ask

        async def cut(question: Question, room: Room) -> Judged:
            judged: Judged = await ask(question, room)
            return Judged(judged.body | {"late": question.options.setting == "softmax"}, judged.seconds)

        monkeypatch.setattr(served.backend, "ask", cut)
        assert post(served, content=honest).status_code == 200
        answer = post(served, content=flagged)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"


# --- versions ------------------------------------------------------------------------------------


@pytest.fixture
def pair(tiny: Bundle) -> tuple[Bundle, Bundle]:
    """Two versions that differ in digest."""
    return tiny, dataclasses.replace(tiny, version="2.0", digest="b" * 64)


def test_a_switch_under_traffic_loses_no_request(pair: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    digests = {one.version: one.digest for one in pair}
    path = tmp_path / "policy.yaml"
    path.write_text('version: "1.2"')
    held = Keeper(path)
    over = threading.Event()

    def ask(served: Running, number: int) -> list[dict[str, Any]]:
        found = []
        while not over.is_set():
            answer = post(served, files=[("images", png(number)), ("images", png(number + 1))])
            assert answer.status_code == 200, answer.text
            both = answer.json()["results"]
            assert both[0]["model"] == both[1]["model"]
            found.append(both[0]["model"])
        return found

    with running(pair[0], also=pair[1:], keeper=held) as served, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, served, i) for i in range(4)]
        try:
            for version in ("2.0", "1.2", "2.0"):
                for _ in range(2):  # what was under way at a switch may still say the old one
                    threading.Event().wait(0.3)
                path.write_text(f'version: "{version}"')
                held.reload()
                assert post(served).json()["model"]["version"] == version
                path.write_text("version: [")
                with pytest.raises(SettingsError):
                    held.reload()
                assert post(served).json()["model"]["version"] == version
        finally:
            over.set()
        models = [one for each in asked for one in each.result(PATIENCE)]
        failed = [
            sample
            for metric in served.registry.collect()
            for sample in metric.samples
            if sample.name == "metastable_requests_total"
            and sample.labels["outcome"] != "ok"
            and sample.value
        ]
    assert {one["version"] for one in models} == {"1.2", "2.0"}
    assert all(one["digest"] == digests[one["version"]] for one in models)
    assert failed == []


def test_versions_are_asked_for_by_their_path(pair: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    text = 'version: "2.0"\nsplit: {arms: {old: {setting: fast, weight: 1, version: "1.2"}}}'
    with running(pair[0], also=pair[1:], keeper=keeper(tmp_path, text)) as served:
        get = lambda path: httpx.get(served.url + path, trust_env=False, timeout=PATIENCE)  # noqa: E731
        assert get("/v2/models/metastable").json()["versions"] == ["1.2", "2.0"]
        for version in ("1.2", "2.0"):
            at = f"/v2/models/metastable/versions/{version}"
            assert get(at + "/ready").json() == {"ready": True}
            answer = infer(served, path=at + "/infer").json()
            assert answer["model_version"] == version
            assert "parameters" not in answer
        assert get("/v2/models/metastable/versions/3/ready").status_code == 404
        # The arm names a version of its own; who names a setting has the default one.
        assert infer(served).json()["model_version"] == "1.2"
        assert post(served).json()["model"]["version"] == "1.2"
        assert post(served, params={"setting": "fast"}).json()["model"]["version"] == "2.0"
