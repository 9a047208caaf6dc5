import pytest

from benchmarks import load
from benchmarks.server import changed
from metastable.errors import MetastableError


def test_the_cheap_stream_is_the_same_with_and_without_dear_requests() -> None:
    alone = load.schedule(5.0, 60.0, 0.0, seed=3)
    mixed = load.schedule(5.0, 60.0, 0.1, seed=3)
    assert [a for a in mixed if a.setting == load.CHEAP] == alone
    dear = sum(a.setting == load.DEAR for a in mixed)
    assert 240 < len(alone) < 360
    assert 15 < dear < 50
    assert mixed == sorted(mixed, key=lambda a: a.at)


def test_one_line_of_the_configuration_is_changed() -> None:
    text = "batchSize: 32  # many\nhandler:\n  threads: 0\n"
    assert changed(text, {"threads": "1"}) == "batchSize: 32  # many\nhandler:\n  threads: 1\n"
    with pytest.raises(MetastableError, match="no single line"):
        changed(text, {"magic": "1"})
