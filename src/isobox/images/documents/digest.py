"""Digests: the names of blobs by their content (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import re
from typing import Final, Protocol

from attrs import frozen

from isobox.errors import DigestMismatch, ImageError, shown

__all__ = ["Digest", "Hasher"]

# The two algorithms that the specification registers; each has one way to be written.
_HEX: Final = {
    "sha256": re.compile("[0-9a-f]{64}"),
    "sha512": re.compile("[0-9a-f]{128}"),
}


class Hasher(Protocol):
    """What `Digest.hasher` returns: the part of hashlib's objects that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far, as lower-case hexadecimal digits."""


@frozen(order=True)
class Digest:
    """A digest of a registered algorithm: what is not well-formed can't be made.

    `algorithm` is "sha256" or "sha512", `hex` its 64 or 128 lower-case hexadecimal digits. So
    both are safe as names of files. Every other algorithm is an `ImageError`: content that can't
    be verified is not content to use.

    >>> digest = Digest.of(b"hello")
    >>> str(digest)
    'sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824'
    >>> Digest.parse(str(digest)) == digest
    True
    """

    algorithm: str
    hex: str

    def __attrs_post_init__(self) -> None:
        form = _HEX.get(self.algorithm) if isinstance(self.algorithm, str) else None
        if form is None:
            raise ImageError(
                f"digest: the algorithm {shown(self.algorithm)} is not one that isobox can verify: "
                "expected sha256 or sha512"
            )
        if not isinstance(self.hex, str) or form.fullmatch(self.hex) is None:
            length = 64 if self.algorithm == "sha256" else 128
            raise ImageError(
                f"digest: {self.algorithm}:{shown(self.hex)}: expected {length} digits of 0-9 and a-f "
                f"behind {self.algorithm}:"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the digest that is written as ``"sha256:..."``; raises `ImageError`."""
        algorithm, colon, digits = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon:
            raise ImageError(
                f"digest: {shown(text)} is none: expected sha256: and 64 digits of 0-9 and a-f behind it"
            )
        return cls(algorithm, digits)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Return the SHA-256 digest of `data`, the specification's canonical one."""
        import hashlib  # `import isobox` stays lean, and so does whoever only parses

        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> Hasher:
        """Return a new hash object of this digest's algorithm.

        >>> hasher = Digest.of(b"").hasher()
        >>> hasher.update(b"hello")
        >>> hasher.hexdigest() == Digest.of(b"hello").hex
        True
        """
        import hashlib

        return hashlib.new(self.algorithm)

    def check(self, data: bytes | bytearray | memoryview, what: str) -> None:
        """Raise `DigestMismatch` unless `data` has this digest; `what` names it in the message."""
        hasher = self.hasher()
        hasher.update(data)
        found = hasher.hexdigest()
        if found != self.hex:
            raise DigestMismatch(what, str(self), f"{self.algorithm}:{found}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
