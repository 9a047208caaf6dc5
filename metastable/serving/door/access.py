"""Who may ask: keys, and how much each client may have under way.

    keys = Keys.read(Path("keys.txt")) if needs_key("0.0.0.0") else None

A file of keys has mode 0600 and one `name:key` a line; names are what a client is counted under.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import stat
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from metastable.errors import NotAuthorized, SettingsError, TooMany
from metastable.serving.door.clients import Counts, Proxies
from metastable.serving.door.identity import Headers, field
from metastable.serving.door.refusals import Refusal

FREE = ("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")
"""Paths that answer everybody at any time."""
SHORTEST = 32
"""Characters of a key at least."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(rf"[!-~]{{{SHORTEST},256}}")


def needs_key(host: str | None) -> bool:
    """Whether a server bound there must ask for a key: yes, unless only this machine can reach it.

    `host`: an address or a name; None for a Unix socket, which file permissions protect.
    """
    if host is None or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


class Keys:
    """Names by the hashes of their keys; the keys themselves are not kept."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._hashes = {name: _hash(key.encode()) for name, key in keys.items()}

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Raises SettingsError for a file that is missing, open to others, empty or wrong in a line."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text("ascii")
        except UnicodeDecodeError:
            raise SettingsError(f"{path} must be ASCII text with one name:key a line") from None
        except OSError as error:
            raise SettingsError(f"the file of keys {path} cannot be read: {error.strerror}") from None
        if mode & 0o077:
            raise SettingsError(f"{path} has mode {mode:04o}, so others may read the keys: chmod 600 {path}")
        keys: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, key = (part.strip() for part in line.partition(":"))
            where = f"line {number} of {path}"  # never the line itself, which may hold a key
            if ":" not in line or not _NAME.fullmatch(name):
                raise SettingsError(f"{where} must be name:key, the name 1 to 64 of A-Z a-z 0-9 . _ -")
            if not _KEY.fullmatch(key):
                raise SettingsError(f"{where}: a key has {SHORTEST} to 256 characters and no spaces")
            if name in keys or key in keys.values():
                raise SettingsError(f"{where} has a name or a key that stands above it already")
            keys[name] = key
        if not keys:
            raise SettingsError(f"{path} has no key: write one name:key a line")
        return cls(keys)

    def name(self, headers: Headers) -> str | None:
        """Whose key a request has, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; None for nobody's.

        It takes equally long whichever key it is, and how much of it is right.
        """
        scheme, _, token = (field(headers, b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            token = field(headers, b"x-api-key") or b""
        given, found = _hash(token.strip()), None
        for name, kept in self._hashes.items():
            if hmac.compare_digest(given, kept):
                found = name
        return found


class Access:
    """Middleware: 401 without a key where there are keys, 429 for a client with too much under way.

    Both come before anything of the body is read.  State of the scope: `client` is the name of the key, or
    else the address; `proxied` says whether a trusted proxy sent the request.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys | None, most: int, proxies: Proxies, free: tuple[str, ...] = FREE
    ) -> None:
        self.app, self.keys, self.most, self.proxies, self.free = app, keys, most, proxies, free
        self.under_way = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.free:
            return await self.app(scope, receive, send)
        if self.keys is None:
            client = self.proxies.client(scope)
        else:
            name = self.keys.name(scope["headers"])
            if name is None:
                return await _UNKNOWN(scope, receive, send)
            client = f"key {name}"
        scope["state"] |= {"client": client, "proxied": self.proxies.sent(scope)}
        if self.under_way[client] >= self.most:
            error = TooMany(f"{self.most} requests of yours are under way: wait for one of them to end")
            return await Refusal.of(error)(scope, receive, send)
        self.under_way.add(client)
        try:
            await self.app(scope, receive, send)
        finally:
            self.under_way.remove(client)


_UNKNOWN = Refusal.of(
    NotAuthorized("a key is needed: send it as Authorization: Bearer KEY, or as X-Api-Key: KEY"),
    ("www-authenticate", 'Bearer realm="metastable"'),
)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
