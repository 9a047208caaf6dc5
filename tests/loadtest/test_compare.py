import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import compare, pairs
from loadtest.arms import parse_arm
from loadtest.compare import parse_condition
from loadtest.figures import FORMAT, Goodput, Latency, Report, Sample, Share, SourceFigures, to_json
from loadtest.schedule import Load
from loadtest.summary import arm_summary
from metastable.errors import DataError


def samples(n: int = 60, *, wrong: int = 0, slower: float = 0.0, source: str = "clean") -> list[Sample]:
    waits = np.random.default_rng(0).exponential(50, n) + slower
    return [Sample(source, i, float(waits[i]), i >= wrong) for i in range(n)]


def made(samples: list[Sample], *, set_digest: str = "x", **arm: Any) -> Report:
    plain = arm_summary(parse_arm("fast", "http://127.0.0.1"), [], [], 1000.0)
    clean = SourceFigures(
        "clean", "clean", 60, 60, None, None, Share(0.05, 0.0, 0.1), None, None, None, None, None, 0, {}
    )
    values = {
        "n": len(samples),
        "answered": len(samples),
        "latency_ms": {name: Latency(100.0, None, None, 6, 60) for name in ("p50", "p90", "p95", "p99")},
        "goodput": Goodput(1000.0, Share(0.9, 0.8, 1.0), None),
        "natural": Share(0.95, 0.9, 1.0),
        "robust": Share(0.4, 0.3, 0.5),
        "sources": [clean],
        "samples": samples,
    }
    return Report(
        format=FORMAT,
        verdict="VALID",
        reasons=[],
        notes=[],
        started="now",
        machine="m",
        load=Load(),
        rounds=1,
        seed=0,
        objective_ms=1000.0,
        sets=[{"file": "a.npz", "digest": set_digest}],
        classes=[],
        settings={},
        arms=[replace(plain, **(values | arm))],  # type: ignore[arg-type]
        pairs=[],
    )


def test_equal_runs_differ_by_noise() -> None:
    found = compare.reports(made(samples()), made(samples()))
    assert found.conditions == {}
    (arm,) = found.arms
    assert all(one.noise and one.value == 0 for one in arm.latency_ms.values())
    assert all(row.noise and row.p == 1 for row in arm.accuracy)


def test_a_slower_and_a_worse_run_are_seen() -> None:
    found = compare.reports(made(samples()), made(samples(wrong=8, slower=200.0)))
    (arm,) = found.arms
    assert arm.latency_ms["p50"].value == pytest.approx(200)
    assert not any(one.noise for one in arm.latency_ms.values())
    (row,) = arm.accuracy
    assert (row.only_first, row.only_second, row.test) == (8, 0, "McNemar, exact")
    assert row.p == pytest.approx(2 / 2**8, abs=1e-5)
    assert any(line.endswith("CHANGED") for line in compare.sentences(found.arms))


def test_other_images_are_not_paired() -> None:
    other = made(samples(wrong=8), set_digest="y")
    found = compare.reports(made(samples()), other)
    assert found.same_images is False
    assert found.arms[0].accuracy[0].test == "Fisher, exact"


def test_what_else_changed_is_told() -> None:
    other = replace(made(samples()), machine="another")
    assert compare.reports(made(samples()), other).conditions == {"machine": ("m", "another")}


def test_runs_without_a_common_arm_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="no arm is in both"):
        compare.reports(made(samples()), made(samples(), arm="other"))


def test_unanswered_requests_are_left_out_of_the_paired_accuracy() -> None:
    first, second = samples(4), samples(4)
    second[0] = Sample("clean", 0, None, None)
    (row,) = pairs.compare(first, second, paired=True).accuracy
    assert row.n == (3, 3)


def test_an_image_that_came_twice_is_paired_in_order() -> None:
    first = [Sample("a", 0, 1.0, True), Sample("a", 0, 1.0, False)]
    second = [Sample("a", 0, 1.0, True)] * 2
    (row,) = pairs.compare(first, second, paired=True).accuracy
    assert (row.n, row.only_first, row.only_second) == ((2, 2), 0, 1)


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("p99>99", True),
        ("p99>100", False),
        ("p50<100", False),
        ("p50<100.5", True),
        ("robust<0.5", True),
        ("robust<0.3", False),
        ("fast.natural<0.96", True),
        ("goodput<0.9", False),
        ("flagged>0.01", True),
        ("unanswered>0", False),
    ],
)
def test_conditions(text: str, fails: bool) -> None:
    assert bool(parse_condition(text).failures(made(samples()))) is fails


def test_a_figure_that_is_not_known_fails() -> None:
    report = made(samples(), robust=None)
    assert parse_condition("robust<0.1").failures(report) == ["fast: robust is not known"]
    unknown = Latency(None, None, None, 368, 60)
    late = made(samples(), latency_ms=report.arms[0].latency_ms | {"p99": unknown})
    assert parse_condition("p99>100").failures(late) == ["fast: p99 is not known"]


def test_a_condition_on_an_arm_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match="the report has the arms"):
        parse_condition("slow.p99>1").failures(made(samples()))


@pytest.mark.slow
@given(st.text(max_size=20) | st.from_regex(r"([a-z.]+\.)?(p99|robust)[<>][0-9.e-]+", fullmatch=True))
def test_any_text_is_a_condition_or_a_data_error(text: str) -> None:
    try:
        condition = parse_condition(text)
    except DataError:
        return
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize("text", ["p99", "p99>", "p98>1", "p99>=1", ">1", "p99>e", "p99>1e999", "p99>1,p5>2"])
def test_a_wrong_condition_is_explained(text: str) -> None:
    with pytest.raises(DataError, match="no condition like"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', "\xff"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"report\.json"):
        compare.load(path)
    path.write_text(json.dumps(to_json(made(samples()))))
    assert compare.load(path) == made(samples())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": [{}]}, "the report, arms lacks achieved_rate"),
        ({"rounds": "3"}, "the report, rounds is no int"),
        ({"load": 3}, "the report, load is no Load"),
        ({"settings": {"a": 1}}, "the report, settings, a is no str"),
        ({"arms": None}, "the report, arms is no list"),
    ],
)
def test_a_report_with_a_wrong_field_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_json(made(samples())) | changes))
    with pytest.raises(DataError, match=f"is no whole report: {said}"):
        compare.load(path)
