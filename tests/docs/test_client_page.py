"""docs/client.md does what it says, against a small server at the address that it names."""

import doctest
from pathlib import Path

import pytest

from tests.client.servers import Act, Request, reply, serving, verdict


def door(request: Request) -> Act:
    if request.body == b"no image":
        said = {"code": "unsupported_image", "message": "The image format is not supported."}
        return Act(reply("415 Unsupported Media Type", {"error": said}))
    said = verdict(**{"class": "cat"})
    said["margin"]["runner_up"] = "deer"
    return Act(reply(said=said))


def test_the_page_is_true(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    page = (root / "docs" / "client.md").read_text()
    with serving(door) as served:
        text = page.replace("http://127.0.0.1:8080", served.url)
        test = doctest.DocTestParser().get_doctest(text, {}, "client.md", None, 0)
        found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
        test.globs["client"].close()
        asked = {request.headers.get("x-metastable-setting") for request in served.seen}
    assert found.attempted > 10
    assert found.failed == 0
    assert asked == {"fast", None}
