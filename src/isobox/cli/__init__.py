"""The command ``isobox``. One module a command; each uses only what `isobox` exports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

ISOBOX_ERROR = 125
"""Exit status for what is wrong with isobox or its options, not with the program that it runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; `argv` without the program's name.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    isobox ...
    0
    """
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print("isobox: the command line needs click and rich: pip install 'isobox[cli]'", file=sys.stderr)
        return ISOBOX_ERROR
    from isobox.cli.app import dispatch

    return dispatch(argv)
