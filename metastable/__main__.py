"""The command `metastable`, and `python -m metastable` where it is not on the path.

Ctrl-C ends it cleanly from here on, while the command itself is being imported too.
"""

import os
import signal
import sys
from types import FrameType

STOPPED = 130  # as metastable.console has it, which is not imported yet


def main() -> int:
    """Run one command; the exit status."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _stop)
    from metastable import cli

    return cli.main(ready=_raise_again if heard else lambda: None)


def _raise_again() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, and an exception could get lost in what is half imported."""
    os.write(2, b"\nstopped\n")
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
