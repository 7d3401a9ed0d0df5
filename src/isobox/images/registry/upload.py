"""One blob from a store to a repository (distribution-spec, "Pushing blobs").

It is sent in one piece, as Docker and skopeo do it: some registries take no more than one. After a cut the
registry is asked how far it got, and goes on from there where it can; docker-registry 2 can't, since it
gives an upload up that is not as long as it said. Then a new one begins.

Proxies before registries bound what one request may have: nginx, 1 MiB where nobody says more, and
Cloudflare, 100 MB, answer 413; others cut the connection. So what was refused with 413, or cut with nothing
gained, is sent on in chunks ("Pushing a blob in chunks"), smaller ones each time, down to 1 MiB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urldefrag, urljoin

from attrs import define, field

from isobox.errors import DigestMismatch, RegistryError, shown

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..store import Store
from ..tar.compression import Readable
from .client import Client, Response
from .progress import Step

__all__ = ["ACTIONS", "Upload", "check_digest"]

ACTIONS: Final = "pull,push"
_PIECE: Final = 1 << 20
_TOLD: Final = 256 << 10  # bytes after which it is told how far it is
_ENOUGH: Final = 1 << 20  # bytes after which a cut is a new one, not the same again
_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LENGTH: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_OCTETS: Final = "application/octet-stream"
_CHUNKS: Final = (64 << 20, 16 << 20, 4 << 20, 1 << 20)
_TOO_LARGE: Final = 413


@define
class Upload:
    """A blob on its way to a repository.

    `tell` is called with "uploading" and the bytes that were sent, whenever some were, and with "retrying"
    and those that the registry has after a cut; what it raises ends the upload.
    Every method raises `RegistryError`.
    """

    store: Store
    client: Client
    repository: str
    blob: Descriptor
    tell: Callable[[Step, int], object]
    _location: str = field(default="", init=False)
    _chunk: int | None = field(default=None, init=False)  # None: all that is left
    _least: int = field(default=0, init=False)  # bytes of a chunk, the last one apart, as the registry says
    _tried: int = field(default=0, init=False)  # those of the last one
    _reader: ExitStack = field(factory=ExitStack, init=False)
    _file: Readable | None = field(default=None, init=False)
    _at: int = field(default=0, init=False)  # where that file is

    def there(self, repository: str | None = None) -> bool:
        """Whether a repository (None: the one that it is for) has the blob."""
        repository = repository or self.repository
        actions = ACTIONS if repository == self.repository else "pull"
        path = f"/v2/{repository}/blobs/{self.blob.digest}"
        with self.client.request(
            "HEAD", path, repository=repository, actions=actions, expect=(200, 404)
        ) as answer:
            length = answer.headers.get("Content-Length")
            return answer.status == 200 and length in (None, str(self.blob.size))

    def mount(self, source: str) -> bool:
        """Have the registry take it from another of its repositories; False where it doesn't."""
        try:
            if not self.there(source):
                return False
            path = f"{self._uploads}?mount={quote(str(self.blob.digest))}&from={quote(source, safe='')}"
            with self._request("POST", path, (201, 202), retry=True, also=(source,)) as answer:
                if answer.status == 201:
                    check_digest(answer, self.blob.digest)
                    return True
                location = _location(answer, self.client)
            self._cancel(location)  # it has begun an upload instead
        except RegistryError as error:
            if error.status is None:
                raise
        return False

    def send(self) -> None:
        """Send all of it. `DigestMismatch` and `ImageError` for one that is damaged on disk, or gone.

        After an error there may be something left at the registry: see `cancel`.
        """
        with self._reader:
            self._send()

    def _send(self) -> None:
        self._location, offset, tries, most = self._start(), 0, 0, 0
        while True:
            try:
                while offset < self.blob.size:
                    self._location, offset = self._patch(self._location, offset)
                self._finish(self._location)
                return
            except RegistryError as error:
                too_large = error.status == _TOO_LARGE
                cut = error.transient and error.status is None
                if too_large and not self._smaller():
                    raise self._too_large(error) from None
                tries += not too_large
                # 404 and 416: the upload is gone, or not as long as we took it to be.
                again = error.transient or error.status in (404, 416, _TOO_LARGE)
                if not again or tries >= self.client.tries:
                    raise
            if tries:
                self.client.pause(tries)
            if self.there():  # what was cut is the answer
                return
            before = offset
            self._location, offset = self._where(self._location)
            self.tell("retrying", offset)
            if offset - most >= _ENOUGH:
                tries, most = 0, offset
            if cut and offset - before < _ENOUGH:
                self._smaller()

    def _smaller(self) -> bool:
        """Have chunks smaller than the last from now on; whether that can be."""
        sizes = [size for size in (*_CHUNKS, self._least) if max(self._least, 1) <= size < self._tried]
        self._chunk = max(sizes, default=self._chunk)
        return bool(sizes)

    def _too_large(self, error: RegistryError) -> RegistryError:
        return RegistryError(
            f"{error}. It refuses {self._tried} bytes in one request. Have the proxy before it, or the "
            "registry itself, take more: client_max_body_size in nginx",
            status=error.status,
            code=error.code,
        )

    def cancel(self) -> None:
        """Have the registry forget what was sent; it does so by itself after some days, too."""
        location, self._location = self._location, ""
        if location:
            self._cancel(location)

    @property
    def _uploads(self) -> str:
        return f"/v2/{self.repository}/blobs/uploads/"

    def _start(self) -> str:
        with self._request("POST", self._uploads, (202,), retry=True) as answer:
            least = (answer.headers.get("OCI-Chunk-Min-Length") or "").strip()
            self._least = int(least) if _LENGTH.fullmatch(least) else 0
            return _location(answer, self.client)

    def _patch(self, location: str, offset: int) -> tuple[str, int]:
        """Send the next chunk, or the rest; return where to go on, and how much it has now."""
        size = self.blob.size
        end = size if self._chunk is None else min(size, offset + max(self._chunk, self._least))
        headers = {"Content-Type": _OCTETS, "Content-Length": str(end - offset)}
        if offset or end < size:
            headers["Content-Range"] = f"{offset}-{end - 1}"
        body = partial(self._part, offset, end)
        self._tried = end - offset
        with self._request("PATCH", location, (202,), headers=headers, body=body) as answer:
            reached = _reached(answer)
            if reached not in (None, end):
                raise RegistryError(
                    f"{self._what}: it has taken {reached} of {end} bytes",
                    transient=True,
                    status=answer.status,
                )
            return _location(answer, self.client), end

    @contextmanager
    def _part(self, offset: int, end: int) -> Iterator[_Body]:
        """The blob from a byte on to another; it is verified from its first byte to its last."""
        if self._file is None or self._at != offset:
            self._file = None
            self._reader.close()
            self._file = self._reader.enter_context(self.store.open(self.blob.digest))
            self._at = offset
            left = offset
            while left and (data := self._file.read(min(left, _PIECE))):
                left -= len(data)
        body = _Body(self._file, offset, end, partial(self.tell, "uploading"))
        try:
            yield body
        finally:
            self._at = body.at

    def _finish(self, location: str) -> None:
        digest = quote(str(self.blob.digest), safe="")
        url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        with self._request("PUT", url, (201, 204), headers={"Content-Type": _OCTETS}, body=b"") as answer:
            check_digest(answer, self.blob.digest)

    def _where(self, location: str) -> tuple[str, int]:
        """Where to go on after a cut, and with which byte: of the same upload, or of a new one."""
        try:
            with self._request("GET", location, (200, 204)) as answer:
                reached = _reached(answer)
                if reached is not None and reached <= self.blob.size:
                    known = answer.headers.get("Location") is not None
                    return _location(answer, self.client) if known else location, reached
        except RegistryError as error:
            if error.status is None:
                raise
        return self._start(), 0

    def _cancel(self, location: str) -> None:
        with suppress(RegistryError):
            self._request("DELETE", location, (200, 202, 204), retry=False).close()

    @property
    def _what(self) -> str:
        return f"registry {self.client.registry}: {self.blob.digest}"

    def _request(self, method: str, path: str, expect: tuple[int, ...], **given: Any) -> Response:
        return self.client.request(
            method, path, repository=self.repository, actions=ACTIONS, expect=expect, **given
        )


class _Body:
    """What is sent of a blob; `at` says how far it is."""

    def __init__(self, file: Readable, at: int, end: int, sent: Callable[[int], object]) -> None:
        self.at = self._told = at
        self._file = file
        self._end = end
        self._sent = sent

    def read(self, size: int = _PIECE, /) -> bytes:
        """What comes next."""
        data = self._file.read(min(size, self._end - self.at))
        self.at += len(data)
        if self.at - self._told >= _TOLD or not data:
            self._told = self.at
            self._sent(self.at)
        return data


def _location(answer: Response, client: Client) -> str:
    """Where an upload goes on: a whole URL, opaque but for that."""
    location = answer.headers.get("Location")
    if not location:
        raise RegistryError(
            f"registry {client.registry}: it doesn't say where to upload to: no Location header"
        )
    try:
        return urldefrag(urljoin(answer.url, location)).url
    except ValueError:
        raise RegistryError(
            f"registry {client.registry}: Location: {shown(location)} is no address"
        ) from None


def _reached(answer: Response) -> int | None:
    """How many bytes an upload has; None where the registry doesn't say. "0-0" is none, as it is written."""
    match = _RANGE.fullmatch((answer.headers.get("Range") or "").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0


def check_digest(answer: Response, digest: Digest) -> None:
    """Raise `DigestMismatch` where the registry says that it has got something else."""
    found = answer.headers.get("Docker-Content-Digest")
    if found and found.startswith(f"{digest.algorithm}:") and found != str(digest):
        raise DigestMismatch(f"what the registry has got of {digest}", digest, found)
