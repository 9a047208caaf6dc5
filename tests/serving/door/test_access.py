"""Keys, counts, proxies and what may be asked from a web page."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from metastable.errors import SettingsError
from metastable.serving.door.access import Keys, needs_key
from metastable.serving.door.clients import Proxies
from metastable.serving.door.limits import Limits
from tests.serving.door.served import PATIENCE, Client, Served, request, serving

KEY, OTHER = "k" * 32, "o" * 40


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    keys = Keys({"alice": KEY, "bob": OTHER})
    with serving(Limits(client_requests=2), keys=keys) as served:
        yield served


@pytest.fixture
def client(guarded: Served) -> Iterator[Client]:
    with guarded.client() as one:
        yield one


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("localhost", False),
        (None, False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.0.1", True),
        ("localhost.evil.example", True),
    ],
)
def test_a_key_is_needed_where_others_can_come(host: str | None, needed: bool) -> None:
    assert needs_key(host) is needed


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ([(b"authorization", b"Bearer " + KEY.encode())], "alice"),
        ([(b"authorization", b"bearer  " + OTHER.encode())], "bob"),
        ([(b"x-api-key", OTHER.encode())], "bob"),
        ([(b"authorization", b"Basic abc"), (b"x-api-key", KEY.encode())], "alice"),
        ([], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", KEY.encode())], None),
        ([(b"authorization", b"Bearer " + KEY.encode()[:-1])], None),
        ([(b"authorization", b"Bearer alice:" + KEY.encode())], None),
        ([(b"x-api-key", b"\xff\x00")], None),
        ([(b"x-api-key", KEY.encode()), (b"x-api-key", OTHER.encode())], None),
    ],
)
def test_whose_key_a_request_has(fields: list[tuple[bytes, bytes]], name: str | None) -> None:
    assert Keys({"alice": KEY, "bob": OTHER}).name(fields) == name


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("metastable.serving.door.access.hmac.compare_digest", note)
    keys = Keys({"alice": KEY, "bob": OTHER})
    for given in (KEY, OTHER, "short", ""):
        compared.clear()
        keys.name([(b"x-api-key", given.encode())])
        assert len(compared) == 2  # all of them, whichever is right
        assert {len(part) for pair in compared for part in pair} == {32}


def test_a_file_of_keys_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", f"# ours\nalice:{KEY}\n\n bob : {OTHER}\n")
    keys = Keys.read(path)
    assert [keys.name([(b"x-api-key", key.encode())]) for key in (KEY, OTHER)] == ["alice", "bob"]
    write(path, f"alice:{KEY}", 0o400)
    Keys.read(path)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (f"alice:{KEY}", 0o640, "chmod 600"),
        (f"alice:{KEY}", 0o604, "chmod 600"),
        ("", 0o600, "has no key"),
        ("alice:" + 31 * "s", 0o600, "line 1 of .* 32 to 256 characters"),
        (f"alice:{KEY}\n{OTHER}", 0o600, "line 2 of .* must be name:key"),
        (f"al ice:{KEY}", 0o600, "must be name:key"),
        (f"alice:{KEY[:20]} {KEY}", 0o600, "no spaces"),
        (f"alice:{KEY}\nalice:{OTHER}", 0o600, "line 2"),
        (f"alice:{KEY}\nbob:{KEY}", 0o600, "line 2"),
        (f"alicé:{KEY}", 0o600, "ASCII"),
    ],
)
def test_a_wrong_file_of_keys_is_one_sentence_without_a_key(
    tmp_path: Path, text: str, mode: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Keys.read(write(tmp_path / "keys", text, mode))
    assert not any(key in str(caught.value) for key in (KEY, OTHER, 31 * "s"))


def test_a_missing_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        Keys.read(tmp_path / "keys")


def test_without_a_key_nothing_is_read_and_health_is_free(guarded: Served, client: Client) -> None:
    before = len(guarded.app.seen)
    client.send(request("POST", "/echo", "Content-Length: 1000000", "Expect: 100-continue"))
    answer = client.answer()
    assert (answer.status, answer.code, answer.interim) == (401, "not_authorized", [])
    assert answer.fields["www-authenticate"].startswith("Bearer ")
    assert answer.json["request_id"] == answer.fields["x-request-id"]
    assert len(guarded.app.seen) == before
    for path in ("/livez", "/readyz"):
        with guarded.client() as other:
            assert other.get(path).status == 200


@pytest.mark.parametrize(
    "path", ["//livez", "/livez/", "/livez/../echo", "/livez%2f", "/LIVEZ", "http://a/echo"]
)
def test_only_these_two_paths_are_free(client: Client, path: str) -> None:
    assert client.get(path).status == 401


def test_a_refused_client_may_keep_its_connection(client: Client) -> None:
    assert client.post("/echo", b"abc").status == 401
    assert client.post("/echo", b"abc", f"Authorization: Bearer {KEY}").status == 200
    assert client.post("/echo", b"abc", f"X-Api-Key: {OTHER}").status == 200
    assert client.post("/echo", b"abc", f"X-Api-Key: {OTHER}x").status == 401


def test_each_key_has_so_much_under_way(guarded: Served) -> None:
    guarded.app.opened.clear()
    mine = f"X-Api-Key: {KEY}"
    with guarded.client() as one, guarded.client() as two, guarded.client() as three:
        while guarded.app.entered.acquire(blocking=False):
            pass
        for client in (one, two):
            client.send(request("GET", "/wait", mine))
            assert guarded.app.entered.acquire(timeout=PATIENCE)
        answer = three.get("/echo", mine)
        assert (answer.status, answer.code) == (429, "too_many")
        assert int(answer.fields["retry-after"]) >= 1
        assert three.get("/echo", f"X-Api-Key: {OTHER}").status == 200
        assert three.get("/livez", mine).status == 200
        guarded.app.opened.set()
        assert [client.answer().status for client in (one, two)] == [200, 200]
        assert three.get("/echo", mine).status == 200


def test_without_keys_addresses_are_counted_and_forwarded_ones_of_a_trusted_proxy() -> None:
    limits, proxies = Limits(client_requests=1), Proxies(["127.0.0.9"])
    with serving(limits, proxies=proxies) as served, served.client("127.0.0.2") as one:
        one.send(request("GET", "/wait"))
        assert served.app.entered.acquire(timeout=PATIENCE)
        forged = "X-Forwarded-For: 192.0.2.7"
        for source, field, status in (
            ("127.0.0.2", "A: b", 429),
            ("127.0.0.2", forged, 429),  # nobody said that it may speak for others
            ("127.0.0.3", "X-Forwarded-For: 127.0.0.2", 200),
            ("127.0.0.9", "X-Forwarded-For: 192.0.2.7, 127.0.0.2", 429),
            ("127.0.0.9", "X-Forwarded-For: 127.0.0.2, 192.0.2.7", 200),
            ("127.0.0.9", "X-Forwarded-For: 127.0.0.2, 127.0.0.9", 429),
        ):
            with served.client(source) as other:
                assert other.get("/echo", field).status == status, (source, field)


def test_web_pages_may_ask_only_where_their_origin_was_named() -> None:
    asks = ["Origin: https://page.example", "Access-Control-Request-Method: POST"]
    with (
        serving(keys=Keys({"alice": KEY}), origins=["https://page.example"]) as served,
        served.client() as client,
    ):
        client.send(request("OPTIONS", "/echo", *asks, "Access-Control-Request-Headers: x-api-key"))
        answer = client.answer()
        assert (answer.status, answer.fields["access-control-allow-origin"]) == (200, "https://page.example")
        assert "x-request-id" in answer.fields
        answer = client.get("/echo", asks[0])
        assert (answer.status, answer.fields["access-control-allow-origin"]) == (401, "https://page.example")
        answer = client.get("/echo", "Origin: https://other.example", f"X-Api-Key: {KEY}")
        assert (answer.status, "access-control-allow-origin" in answer.fields) == (200, False)
    with serving() as served, served.client() as client:
        answer = client.get("/echo", *asks)
        assert not [name for name in answer.fields if name.startswith("access-control")]


def test_an_error_is_the_json_that_every_error_is(client: Client) -> None:
    answer = client.get("/echo")
    assert list(json.loads(answer.body)) == ["error", "request_id"]
    assert set(answer.json["error"]) == {"code", "message"}
