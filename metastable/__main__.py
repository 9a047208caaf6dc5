"""`python -m metastable`: the command `metastable`, where it is not on the path."""

import sys

from metastable.cli import main

sys.exit(main())
