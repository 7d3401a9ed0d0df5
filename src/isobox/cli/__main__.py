"""Lets ``python -m isobox.cli`` be the same as ``isobox``."""

import sys

from isobox.cli import main

sys.exit(main())
