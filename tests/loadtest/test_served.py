"""Arms that the server assigned, read from its replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import served
from loadtest.arms import Arm, Block, parse_arm
from loadtest.client import Exchange, Played
from loadtest.schedule import Load
from tests.loadtest.servers import Behaviour, serving
from tests.loadtest.test_report import N, reasons_but_the_clients, report_of

ARM = Arm("ab", "", "http://127.0.0.1:8080")


PATIENT = Load(scenario="constant", rate=150, timeout=60)


def block(*arms: str | None, warmup: int = 0) -> Block:
    exchanges = [Exchange(i, 0.0, 0.0, 1.0, "answer", None, arm) for i, arm in enumerate(arms)]
    return Block("ab", 0, list(range(len(arms))), warmup, 0.0, Played(exchanges, [], 0.0, 1.0))


def test_a_server_without_arms_leaves_an_arm_as_it_is() -> None:
    blocks = [block(None, None)]
    assert served.parts(ARM, blocks) == [(ARM, blocks)]


def test_each_request_goes_to_the_arm_that_its_reply_says() -> None:
    found = served.parts(ARM, [block("b", "a", None, "b"), block("a", "é", "a")])
    assert [arm.name for arm, _ in found] == ["ab.a", "ab.b", "ab.no-arm"]
    numbers = [[[e.number for e in one.played.exchanges] for one in blocks] for _, blocks in found]
    assert numbers == [[[1], [0, 2]], [[0, 3], []], [[2], [1]]]
    assert {one.arm for _, blocks in found for one in blocks} == {"ab.a", "ab.b", "ab.no-arm"}


def test_an_arm_of_the_warm_up_alone_is_none() -> None:
    assert [arm.name for arm, _ in served.parts(ARM, [block("b", "a", "a", warmup=1)])] == ["ab.a"]


def test_an_arm_says_the_header_by_which_clients_differ() -> None:
    assert parse_arm("ab:clients=X-Account", "http://127.0.0.1:1").target.clients == "X-Account"
    with pytest.raises(Exception, match="clients must be the name of a header"):
        parse_arm("ab:clients=X Account", "http://127.0.0.1:1")


@pytest.mark.slow
def test_the_report_compares_the_servers_arms(tmp_path: Path) -> None:
    with serving(Behaviour(arms=("left", "right"))) as url:
        found = report_of(url, load=PATIENT, folder=tmp_path, given="clients=X-Account")
    assert reasons_but_the_clients(found) == []
    left, right = found["arms"]
    assert (left["arm"], right["arm"]) == ("arm0.left", "arm0.right")
    assert left["n"] + right["n"] == 2 * N
    assert min(left["n"], right["n"]) > 0
    for arm in (left, right):
        assert arm["identity"]["setting"] == [arm["arm"].partition(".")[2]]
        assert arm["natural"][1] <= arm["natural"][0] <= arm["natural"][2]
    [pair] = found["pairs"]
    assert (pair["first"], pair["second"], pair["paired"]) == ("arm0.left", "arm0.right", False)
    assert {row["test"] for row in pair["accuracy"]} == {"Fisher, exact"}
    [clean, pgd] = pair["flagged"]
    assert clean["flagged"][0][0] == 0.0
    assert sum(clean["n"]) + sum(pgd["n"]) == 2 * N
    assert 0 < pgd["flagged"][0][0] + pgd["flagged"][1][0] < 2
    assert "arm0.right" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_refusals_are_those_of_the_arm_that_gave_them(tmp_path: Path) -> None:
    refusing = ("503 Busy", b'{"error": {"code": "overloaded", "message": "wait"}}')
    with serving(Behaviour(arms=("left", "right"), reply=refusing)) as url:
        found = report_of(url, load=PATIENT, folder=tmp_path, given="clients=X-Account")
    assert found["verdict"] == "INVALID"
    assert [arm["arm"] for arm in found["arms"]] == ["arm0.left", "arm0.right"]
    for arm in found["arms"]:
        assert arm["outcomes"] == {"overloaded": arm["n"]}
