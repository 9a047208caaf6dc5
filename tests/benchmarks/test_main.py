"""The arguments that benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from metastable import console

STORE = Path("model_store")


@pytest.mark.parametrize(
    ("name", "bundle"),
    [("decide", "cifar10"), ("load", "cifar10"), ("scaling", "cifar10"), ("price", "cifar10-hardened")],
)
def test_each_has_a_bundle_of_its_own_by_default(name: str, bundle: str) -> None:
    parser = console.Parser(prog="bench")
    benchmarks.fill(parser)
    assert console.parse(parser, [name]).bundle == STORE / bundle
