"""The policy that docs/operating.md shows is one, and says what the page says."""

import dataclasses
import re
from pathlib import Path

from metastable import bundle
from metastable.images import Fit
from metastable.serving.backends.base import Served
from metastable.serving.policy import file


def test_the_example_is_a_policy_that_the_shipped_bundle_fits(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "operating.md").read_text()
    [example] = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    policy = file.parse(example, salt=b"", folder=tmp_path)
    assert policy.split is not None
    assert policy.shadow is not None
    assert policy.shadow.report == tmp_path / "shadow.json"
    assert {rule.action for rule in policy.flags.values()} == {"mark", "refuse", "stronger"}
    settings = bundle.load(root / "model_store" / "cifar10").settings
    one = Served(
        "m", "0.1.0", "d", (3, 32, 32), Fit(), ("x",), settings.names, settings.default, False, "torch"
    )
    policy.check({"0.1.0": one, "0.2.0": dataclasses.replace(one, version="0.2.0")})
    assert "operating.md" in (root / "README.md").read_text()
