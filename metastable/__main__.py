"""The command `metastable`, and `python -m metastable` where it is not on the path.

Ctrl-C ends it cleanly from here on, while the command itself is being imported too.
"""

import sys


def main() -> int:
    """Run one command; the exit status."""
    try:
        from metastable import cli
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr, flush=True)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
