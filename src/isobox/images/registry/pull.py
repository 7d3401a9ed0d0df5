"""Images from a registry into a store: verified bytes under their digests, and a name at the end.

Of an index the document itself and what one platform needs of it are fetched; the store takes such an
index for an image of that platform. All is done under a lease of the store and the name comes last: killed
at any moment, a pull leaves whole blobs that the next one finds, and halves that it goes on with.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeAlias

from attrs import frozen

from isobox.errors import DigestMismatch, ImageError, NotFound, RegistryError, shown
from isobox.worker import take_no_signals

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.media import INDEXES, MANIFESTS, is_distributable, layer_compression, plain_media_type
from ..documents.model import parse_document
from ..documents.platform import Platform
from ..documents.reference import Reference
from ..layers.unpacked import Held, Layers
from ..layout.blobs import MOST
from ..layout.choose import Chosen, choose
from ..layout.writer import Writer
from ..store import Store
from .client import Client, Patience, Response
from .coming import BegunAnew, Coming
from .credentials import find
from .progress import Progress, Report, Step

__all__ = ["pull"]

_AT_ONCE: Final = 3  # as many as Docker
_CHUNK: Final = 256 << 10
_ENOUGH: Final = 1 << 20  # bytes after which a cut is a new one, not the same again
_DOCUMENTS: Final = INDEXES | MANIFESTS
_ACCEPT: Final = ", ".join(sorted(_DOCUMENTS))
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-")

_Tell: TypeAlias = Callable[[Step, int], object]
"""What is done with a layer now, and how many bytes of it there are."""
_Begun: TypeAlias = Callable[[Writer], object]


def pull(
    store: Store,
    reference: Reference,
    *,
    platform: Platform | None = None,
    progress: Report | None = None,
    insecure: bool = False,
    layers: Layers | None = None,
    patience: Patience | None = None,
) -> Descriptor:
    """Fetch an image, and give it the name `reference`; return its descriptor: of its index where it is one.

    `platform`: None for this machine's. `progress` is called with a `Progress` for everything that happens,
    by one thread at a time. `insecure` as `Client` has it. `layers`: where to unpack its layers, each as it
    comes, once those below are there; None: nowhere.

    What the store has already isn't fetched again. Raises `NotFound` where the registry has no such image,
    `RegistryError` where it refuses or answers nonsense, `DigestMismatch` where it sends something else than
    what was asked for, `ImageError` where nothing of it is for the platform, and what unpacking raises. Then
    nothing has the name that did not have it before, and what came is there for the next try.
    """
    with ExitStack() as stack:
        credential = find(reference.registry, reference.repository)
        client = stack.enter_context(
            Client(reference.registry, insecure=insecure, credential=credential, patience=patience)
        )
        stack.enter_context(store.lease())
        fetching = _Fetching(store, client, reference)
        root = fetching.root()
        chosen = choose(store, root, platform, fetch=fetching.document)
        _check_layers(reference, chosen)
        _Layers(fetching, chosen, progress).fetch(layers)
        store.tag(reference, root)
    return root


def _check_layers(reference: Reference, chosen: Chosen) -> None:
    for layer, _ in chosen.layers:
        layer_compression(layer.media_type)
        if layer.urls or not is_distributable(layer.media_type):
            raise ImageError(
                f"{reference.familiar}: its layer {layer.digest} is to be had elsewhere, "
                f"{shown(layer.urls[0]) if layer.urls else 'nobody says where'}: such foreign layers are not "
                "fetched. Ask its maker for an image that is whole"
            )


@frozen
class _Fetching:
    """Blobs and documents of one repository on their way into the store."""

    store: Store
    client: Client
    reference: Reference

    def root(self) -> Descriptor:
        """Fetch what the reference names, a manifest or an index."""
        reference = self.reference
        data, media_type = self._manifest(str(reference.digest or reference.tag))
        digest = reference.digest or Digest.of(data)
        digest.check(data, f"the manifest of {reference.familiar}")
        try:
            found = parse_document(data, media_type)
        except ImageError as error:
            raise RegistryError(
                f"{reference.familiar}: what the registry sends is no image: {error}"
            ) from None
        descriptor = Descriptor(found.media_type, digest, len(data))
        self._add(descriptor, data)
        return descriptor

    def document(self, descriptor: Descriptor) -> None:
        """Have an index, a manifest or a config in the store, undamaged."""
        if self.store.has(descriptor.digest, descriptor.size):
            try:
                self.store.read(descriptor.digest)
            except DigestMismatch:
                pass  # damaged on disk: it is mended
            else:
                return
        if descriptor.size > MOST:
            raise ImageError(
                f"{self.reference.familiar}: {descriptor.digest} has {descriptor.size} bytes: expected at "
                f"most {MOST} of a document"
            )
        if plain_media_type(descriptor.media_type) in _DOCUMENTS:
            data, _ = self._manifest(str(descriptor.digest))
            self._add(descriptor, data)
        else:
            self.blob(descriptor)

    def _add(self, descriptor: Descriptor, data: bytes) -> None:
        with (
            self._from_registry(),
            self.store.writer(descriptor.digest, descriptor.size) as writer,
        ):
            writer.write(data)
            writer.commit()

    def _manifest(self, name: str) -> tuple[bytes, str | None]:
        """The bytes and the media type of a document by its tag or digest."""
        path = f"/v2/{self.reference.repository}/manifests/{name}"
        tries = 0
        while True:
            try:
                with self._get(path, {"Accept": _ACCEPT}) as response:
                    return response.read_all(MOST), response.headers.get("Content-Type")
            except RegistryError as error:
                tries += 1
                if not error.transient or tries >= self.client.tries:
                    raise
                self.client.pause(tries)

    def blob(self, descriptor: Descriptor, tell: _Tell | None = None, begun: _Begun | None = None) -> None:
        """Fetch a blob into the store; after a cut it goes on where that was, an earlier pull's too.

        `begun` is told of the writer before the first byte, and of another one if all is fetched again.
        """
        with self._from_registry():
            if not self._fetched(descriptor, tell, begun, resume=descriptor.size >= _ENOUGH):
                if tell is not None:
                    tell("retrying", 0)
                self._fetched(descriptor, tell, begun, resume=False)

    def _fetched(
        self,
        descriptor: Descriptor,
        tell: _Tell | None,
        begun: _Begun | None,
        *,
        resume: bool,
    ) -> bool:
        """Fetch a blob; False where it can't go on with what an earlier pull had left, and that is gone."""
        with self.store.writer(descriptor.digest, descriptor.size, resume=resume) as writer:
            if begun is not None:
                begun(writer)
            if writer.resumed and tell is not None:
                tell("downloading", writer.written)
            try:
                if writer.resumed < descriptor.size:
                    self._pieces(descriptor, writer, tell)
                writer.commit()
            except DigestMismatch:
                if not writer.resumed:
                    raise
                return False  # what was left is damaged, most likely: a loss of power, say
            except RegistryError as error:
                answered = error.status is not None and error.status not in (401, 403)
                if error.transient or not answered or not 0 < writer.resumed == writer.written:
                    raise
                writer.drop()  # it won't have such a range
                return False
        return True

    def _pieces(self, descriptor: Descriptor, writer: Writer, tell: _Tell | None) -> None:
        tries, since = 0, writer.written
        while True:
            try:
                self._rest(descriptor, writer, tell)
                return
            except RegistryError as error:
                if writer.written == descriptor.size:
                    return  # cut behind its last byte
                if writer.written - since >= _ENOUGH:
                    tries = 0
                tries, since = tries + 1, writer.written
                if not error.transient or tries >= self.client.tries:
                    raise
                if tell is not None:
                    tell("retrying", writer.written)
                self.client.pause(tries)

    @contextlib.contextmanager
    def _from_registry(self) -> Iterator[None]:
        """Say of wrong bytes whose they are."""
        try:
            yield
        except DigestMismatch as error:
            raise DigestMismatch(
                f"{error.what} of {self.reference.familiar}, as the registry sends it",
                error.expected,
                error.found,
                "Nothing of it was kept. Try again; if it stays so, the registry's copy is damaged",
            ) from None

    def _rest(self, descriptor: Descriptor, writer: Writer, tell: _Tell | None) -> None:
        start = writer.written
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{self.reference.repository}/blobs/{descriptor.digest}"
        with self._get(path, headers, (200, 206) if start else (200,)) as response:
            skip = _passed_over(response, start)
            while data := response.read(_CHUNK):
                fresh = data[skip:]
                skip -= len(data) - len(fresh)
                if fresh:
                    writer.write(fresh)
                    if tell is not None:
                        tell("downloading", writer.written)
        if writer.written < descriptor.size:
            raise RegistryError(
                f"registry {self.client.registry}: {descriptor.digest} ended after {writer.written} of "
                f"{descriptor.size} bytes",
                transient=True,
            )

    def _get(self, path: str, headers: dict[str, str], expect: tuple[int, ...] = (200,)) -> Response:
        try:
            return self.client.request(
                "GET", path, repository=self.reference.repository, headers=headers, expect=expect
            )
        except RegistryError as error:
            if error.status == 404:
                raise NotFound(f"{self.reference.familiar}: {error}") from None
            raise


def _passed_over(response: Response, start: int) -> int:
    """How many bytes of an answer are known already, asked for those from `start` on."""
    if response.status != 206:
        return start  # it knows no ranges
    given = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
    if given is None or int(given[1]) != start:
        raise RegistryError(
            f"{response.what}: asked for what begins at byte {start}, it sends something else",
            status=response.status,
        )
    return 0


@frozen
class _Fetched:
    coming: Coming
    future: Future[None]


class _Layers:
    """The layers of one image: fetched several at a time, unpacked one after the other as they come."""

    def __init__(self, fetching: _Fetching, chosen: Chosen, report: Report | None) -> None:
        self._fetching = fetching
        self._chosen = chosen
        self._report = report
        self._mutex = threading.Lock()
        self._problem: BaseException | None = None

    def fetch(self, layers: Layers | None) -> None:
        """Have all of them in the store, and in `layers`, if that is given."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(_AT_ONCE, "isobox-pull", take_no_signals))
            try:
                fetched: dict[Digest, _Fetched] = {}
                for number, (layer, _) in enumerate(self._chosen.layers):
                    self._tell(number, "waiting", 0)
                    if layer.digest not in fetched:
                        coming = Coming(self._fetching.store, layer.digest)
                        stack.callback(coming.close)
                        fetched[layer.digest] = _Fetched(
                            coming, pool.submit(self._one, number, layer, coming)
                        )
                self._settle(fetched, layers)
            except BaseException as error:
                self._fetching.client.abort()
                pool.shutdown(wait=True, cancel_futures=True)
                # One that failed has the others give up; it says why.
                if self._problem is not None and isinstance(error, Exception):
                    raise self._problem from None
                raise

    def _one(self, number: int, layer: Descriptor, coming: Coming) -> None:
        def tell(step: Step, received: int) -> None:
            if step == "downloading":
                coming.grew(received)
            self._tell(number, step, received)

        try:
            if self._fetching.store.has(layer.digest, layer.size):
                self._tell(number, "there", layer.size)
            else:
                self._fetching.blob(layer, tell, coming.began)
                self._tell(number, "downloaded", layer.size)
        except BaseException as error:
            with self._mutex:
                self._problem = self._problem or error
            coming.ended(error)
            self._fetching.client.abort()
            raise
        coming.ended()

    def _settle(self, fetched: dict[Digest, _Fetched], layers: Layers | None) -> None:
        held: Held | None = None
        if layers is not None:
            layers.expect(len(self._chosen.layers))
        try:
            for number, (layer, _) in enumerate(self._chosen.layers):
                if layers is not None:
                    with ExitStack() as below:
                        if held is not None:
                            below.enter_context(held)
                        held = self._unpacked(layers, held, number, fetched[layer.digest])
                else:
                    fetched[layer.digest].future.result()
                self._tell(number, "done", layer.size)
        finally:
            if held is not None:
                held.close()

    def _unpacked(self, layers: Layers, below: Held | None, number: int, fetched: _Fetched) -> Held:
        layer, diff_id = self._chosen.layers[number]
        told: list[int] = []

        def unpacking() -> None:
            if not told:
                told.append(number)
                self._tell(number, "unpacking", layer.size)

        opened = partial(fetched.coming.open, unpacking)
        try:
            held = layers.ensure(below, diff_id, opened)
        except (ImageError, BegunAnew):
            fetched.future.result()  # raises what was wrong with it before it was unpacked
            if not fetched.coming.doubtful:
                raise
            held = layers.ensure(below, diff_id, opened)
        with ExitStack() as unless:
            unless.enter_context(held)
            fetched.future.result()
            unpacking()
            unless.pop_all()
        return held

    def _tell(self, number: int, step: Step, received: int) -> None:
        if self._report is None:
            return
        layers = self._chosen.layers
        layer = layers[number][0]
        with self._mutex:
            self._report(Progress(str(layer.digest), number + 1, len(layers), step, received, layer.size))
