"""Answers of a server that has to get on: no headers without end, and no byte a minute.

`http.client` bounds each line and the number of headers, but not how many interim answers and trailers come,
nor how long all of it takes: each byte begins a new wait for the socket's timeout.
"""

from __future__ import annotations

import http.client
import io
import time
from typing import Any, Final

from typing_extensions import Buffer

__all__ = ["PacedResponse"]

_MOST: Final = 1 << 20  # bytes of all headers, and of all trailers


class PacedResponse(http.client.HTTPResponse):
    """An answer that raises TimeoutError where less than `least` bytes a second come for `silence` seconds.

    Only the time counts that is spent waiting for them. Headers have as long for the whole of them.
    """

    def __init__(self, sock: Any, *args: Any, silence: float, least: int, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self._paced = _Paced(self.fp.detach(), silence, least)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        """Read the headers."""
        self._paced.bound(_MOST)
        super().begin()
        self._paced.bound(None)

    def _read_and_discard_trailer(self) -> None:
        self._paced.bound(_MOST)
        super()._read_and_discard_trailer()  # type: ignore[misc]


class _Paced(io.RawIOBase):
    """What is read of a socket, counted."""

    def __init__(self, raw: Any, silence: float, least: int) -> None:
        self._raw = raw
        self._silence = silence
        self._least = least
        self._most: int | None = None
        self._waited = 0.0
        self._came = 0

    def bound(self, most: int | None) -> None:
        """Begin to count anew; with `most`, as many bytes and `silence` seconds are all there may be."""
        self._most = most
        self._waited, self._came = 0.0, 0

    def readinto(self, buffer: Buffer, /) -> int | None:
        """Raises TimeoutError, `http.client.HTTPException`."""
        begun = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begun
        self._came += count or 0
        if self._most is not None and self._came > self._most:
            raise http.client.HTTPException("headers without end")
        if self._waited > self._silence:
            if self._most is not None or self._came < self._least * self._waited:
                raise TimeoutError("too slow")
            self._waited, self._came = 0.0, 0
        return count

    def readable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The socket's."""
        found: int = self._raw.fileno()
        return found

    def close(self) -> None:
        """Close the file, not the socket."""
        self._raw.close()
        super().close()
