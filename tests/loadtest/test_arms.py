import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import arms
from loadtest.arms import Arm, parse_arm
from loadtest.schedule import Load
from metastable.errors import MetastableError
from tests.loadtest.servers import Behaviour, item, serving

URL = "http://127.0.0.1:8080"


def test_a_bare_name_is_a_setting() -> None:
    arm = parse_arm("fast", URL)
    assert arm == Arm("fast", "fast", URL)
    assert arm.target.url == f"{URL}/predictions/metastable"
    assert arm.target.headers == {"X-Metastable-Setting": "fast"}


def test_an_arm_names_setting_model_version_and_address() -> None:
    arm = parse_arm("new:setting=fast,model=m,version=2.0,url=http://127.0.0.1:9/,deadline=50", URL)
    assert arm.target.url == "http://127.0.0.1:9/predictions/m/2.0"
    assert arm.target.headers == {"X-Metastable-Setting": "fast", "X-Metastable-Deadline-Ms": "50"}
    assert parse_arm("plain:model=m", URL).target.headers == {}


@pytest.mark.parametrize(
    "text", ["", "a b", "x:", "x:setting", "x:colour=red", "x:setting=a\nb", "x:setting=ä"]
)
def test_a_wrong_arm_is_explained(text: str) -> None:
    with pytest.raises(MetastableError, match="arm"):
        parse_arm(text, URL)


@given(st.text(max_size=40))
def test_any_text_is_an_arm_or_an_error(text: str) -> None:
    try:
        arm = parse_arm(text, URL)
    except MetastableError:
        return
    assert arm.name == text.partition(":")[0]


@pytest.mark.slow
def test_arms_take_turns_on_the_same_images_at_the_same_times() -> None:
    items = [item(0, 0, row=i) for i in range(10)]
    with serving(Behaviour()) as url:
        both = [parse_arm(name, url) for name in ("a", "b")]
        blocks = arms.run(both, items, Load(rate=100), rounds=2, warmup=3, seed=0)
    assert [(block.arm, block.turn) for block in blocks] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    by = {(block.arm, block.turn): block for block in blocks}
    for turn in (0, 1):
        a, b = by["a", turn], by["b", turn]
        assert a.items == b.items
        assert [e.due for e in a.played.exchanges] == [e.due for e in b.played.exchanges]
        assert a.items[3:] == list(range(5 * turn, 5 * turn + 5))
        assert set(a.items[:3]).isdisjoint(a.items[3:])
    assert blocks[0].started < blocks[1].started
    assert {e.verdict.setting for e in by["b", 1].played.exchanges if e.verdict} == {"b"}


@pytest.mark.parametrize(("rounds", "warmup", "n"), [(0, 0, 5), (1, -1, 5), (3, 0, 2)])
def test_rounds_that_do_not_fit_are_explained(rounds: int, warmup: int, n: int) -> None:
    with pytest.raises(MetastableError, match="rounds"):
        arms.run([parse_arm("a", URL)], [item(0, 0)] * n, Load(), rounds=rounds, warmup=warmup, seed=0)
