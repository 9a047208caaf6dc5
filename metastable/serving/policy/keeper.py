"""The policy in force, and how another one takes its place while requests come."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from metastable.serving.policy import file
from metastable.serving.policy.values import Policy


class Keeper:
    """Holds a policy.  A request looks once, so that it is answered by one policy whatever comes meanwhile.

    Args:
        path: of the policy's file; None for no policy.
        check: raises SettingsError for a policy that does not fit what is served.

    Raises SettingsError for a file that is wrong.
    """

    def __init__(
        self, path: Path | None = None, check: Callable[[Policy], None] = lambda policy: None
    ) -> None:
        # For as long as this process lives, so that reading the file again moves no client.
        self._salt = secrets.token_bytes(32)
        self._path, self._check = path, check
        self.policy = Policy()
        self.reload()

    def reload(self) -> None:
        """Read the file again.  SettingsError for one that is wrong; the policy stays as it was then."""
        if self._path is not None:
            policy = file.load(self._path, salt=self._salt)
            self._check(policy)
            self.policy = policy
