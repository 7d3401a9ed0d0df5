"""Images from a store to a registry (distribution-spec, "Push"): what is missing there, and then a name.

A registry takes a manifest whose blobs it has, and an index whose manifests it has. So blobs come first,
several at a time, then documents from the lowest to the one that gets the name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from attrs import field, frozen

from isobox.errors import ImageError, NotFound, RegistryError
from isobox.worker import take_no_signals

from ..documents.descriptor import Descriptor
from ..documents.digest import Digest
from ..documents.media import INDEXES, MANIFESTS, is_distributable, plain_media_type
from ..documents.model import Index
from ..documents.platform import Platform
from ..documents.reference import Reference
from ..layout.walk import document as read_document
from ..layout.walk import reachable
from ..store import Store
from .client import Client, Patience, Response
from .credentials import find
from .progress import Progress, Report, Step
from .upload import ACTIONS, Upload, check_digest

__all__ = ["push"]

_AT_ONCE: Final = 5  # as many as Docker
_MOST_SOURCES: Final = 3  # repositories that one blob is tried to be mounted from
_DEEPEST: Final = 4  # indexes in each other, as `choose` takes them
_MOST_DOCUMENTS: Final = 20_000
_DOCUMENTS: Final = INDEXES | MANIFESTS

_Item: TypeAlias = tuple[int, Descriptor]
"""A blob, and which layer it is, from 1; 0 for a config."""

_T = TypeVar("_T")


def push(
    store: Store,
    descriptor: Descriptor,
    reference: Reference,
    *,
    progress: Report | None = None,
    insecure: bool = False,
    patience: Patience | None = None,
) -> None:
    """Send an image to the registry of `reference`, where it gets that name; all of it, if it is an index.

    What the registry has isn't sent again: neither in that repository, nor in another one of it that the
    store has a name of, from where it is mounted. `progress` is called with a `Progress` for every layer and
    config, by one thread at a time. `insecure` as `Client` has it.

    Raises `RegistryError` where the registry refuses or answers nonsense, `DigestMismatch` where a blob is
    damaged on disk or the registry has got something else, `NotFound` where something is neither in the
    store nor there, `ImageError` for what is no image. What had the name until then keeps it.
    """
    if reference.digest is not None and reference.digest != descriptor.digest:
        raise ImageError(f"{reference.familiar}: the image that is pushed has the digest {descriptor.digest}")
    with ExitStack() as stack:
        stack.enter_context(store.lease())
        parts = _collect(store, descriptor)
        credential = find(reference.registry, reference.repository)
        client = stack.enter_context(
            Client(reference.registry, insecure=insecure, credential=credential, patience=patience)
        )
        pushing = _Pushing(store, client, reference, parts, progress)
        for absent in parts.absent:
            pushing.check_absent(absent)
        pushing.blobs()
        for document in parts.documents:
            pushing.put(document)


@frozen
class _Document:
    """An index or a manifest; `name` is what it is put under, "" for the image itself."""

    descriptor: Descriptor
    data: bytes = field(repr=False)
    name: str


@frozen
class _Parts:
    """What an image is made of.

    `documents`: those that come first are named by later ones. `absent` are those that the store lacks, and
    `platforms` those of the images that it has.
    """

    root: Descriptor
    documents: list[_Document] = field(factory=list)
    layers: dict[Digest, Descriptor] = field(factory=dict)
    configs: dict[Digest, Descriptor] = field(factory=dict)
    absent: list[Descriptor] = field(factory=list)
    platforms: list[Platform] = field(factory=list)

    @property
    def blobs(self) -> list[_Item]:
        """All layers and configs, each once."""
        configs = [blob for blob in self.configs.values() if blob.digest not in self.layers]
        return list(enumerate(self.layers.values(), 1)) + [(0, blob) for blob in configs]


def _collect(store: Store, root: Descriptor) -> _Parts:
    parts = _Parts(root)
    seen: set[tuple[Digest, str]] = set()

    def visit(descriptor: Descriptor, depth: int) -> None:
        if (descriptor.digest, descriptor.media_type) in seen:
            return
        seen.add((descriptor.digest, descriptor.media_type))
        if depth > _DEEPEST or len(seen) > _MOST_DOCUMENTS:
            raise ImageError(f"image {root.digest}: too many manifests in it, or indexes in each other")
        is_document = plain_media_type(descriptor.media_type) in _DOCUMENTS
        if depth and not (is_document and store.has(descriptor.digest, descriptor.size)):
            parts.absent.append(descriptor)
            return
        store.has(descriptor.digest)
        found = read_document(store, descriptor)
        if isinstance(found, Index):
            for child in found.manifests:
                visit(child, depth + 1)
        else:
            parts.configs[found.config.digest] = found.config
            if descriptor.platform is not None:
                parts.platforms.append(descriptor.platform)
            parts.layers.update(
                (layer.digest, layer) for layer in found.layers if is_distributable(layer.media_type)
            )
        data = found.encode()
        here = Descriptor(found.media_type, descriptor.digest, len(data))
        parts.documents.append(_Document(here, data, str(descriptor.digest) if depth else ""))

    visit(root, 0)
    return parts


def _sources(store: Store, reference: Reference) -> dict[Digest, list[str]]:
    """The other repositories of that registry that have a blob, as far as the store knows."""
    found: dict[Digest, list[str]] = {}
    for name in store.references():
        if name.registry != reference.registry or name.repository == reference.repository:
            continue
        with suppress(ImageError):  # it has just lost its name, or is damaged
            for digest in reachable(store, [store.resolve(name)], strict=False):
                repositories = found.setdefault(digest, [])
                if name.repository not in repositories:
                    repositories.append(name.repository)
    return found


class _Pushing:
    """One image on its way."""

    def __init__(
        self, store: Store, client: Client, reference: Reference, parts: _Parts, report: Report | None
    ) -> None:
        self._store = store
        self._client = client
        self._reference = reference
        self._parts = parts
        self._report = report
        self._mutex = threading.Lock()
        self._problem: BaseException | None = None

    def blobs(self) -> None:
        """Have the registry get all layers and configs."""
        items = self._parts.blobs
        for item in items:
            self._tell(item, "waiting", 0)
        there = self._each(self._is_there, items)
        lacking = [item for item, found in zip(items, there, strict=True) if not found]
        if lacking:
            sources = _sources(self._store, self._reference)
            self._each(lambda item: self._send(item, sources.get(item[1].digest, [])), lacking)

    def _is_there(self, item: _Item) -> bool:
        blob = item[1]
        found = self._upload(item).there()
        if not found and not self._store.has(blob.digest, blob.size):
            raise NotFound(
                f"{self._reference.familiar}: its blob {blob.digest} is neither in the store nor at the "
                "registry. Pull or load the image again"
            )
        if found:
            self._tell(item, "there", blob.size)
        return found

    def _send(self, item: _Item, sources: list[str]) -> None:
        upload = self._upload(item)
        if any(upload.mount(source) for source in sources[:_MOST_SOURCES]):
            self._tell(item, "mounted", item[1].size)
            return
        try:
            upload.send()
        except BaseException as error:
            self._note(error)
            upload.cancel()
            raise
        self._tell(item, "done", item[1].size)

    def _upload(self, item: _Item) -> Upload:
        tell = partial(self._going_on, item)
        return Upload(self._store, self._client, self._reference.repository, item[1], tell)

    def _going_on(self, item: _Item, step: Step, sent: int) -> None:
        if self._problem is not None:
            raise RegistryError(f"registry {self._client.registry}: given up")
        self._tell(item, step, sent)

    def _each(self, do: Callable[[_Item], _T], items: list[_Item]) -> list[_T]:
        """Do it for all of them, several at a time; the first that fails ends the others."""

        def one(item: _Item) -> _T:
            try:
                return do(item)
            except BaseException as error:
                self._give_up(error)
                raise

        with ThreadPoolExecutor(_AT_ONCE, "isobox-push", take_no_signals) as pool:
            try:
                return list(pool.map(one, items))
            except BaseException as error:
                self._give_up(error)
                pool.shutdown(wait=True, cancel_futures=True)
                if self._problem is not None and isinstance(error, Exception):
                    raise self._problem from None  # the others say no more than that they were ended
                raise

    def _give_up(self, error: BaseException) -> None:
        self._note(error)
        self._client.abort()

    def _note(self, error: BaseException) -> None:
        """Have the others end with what they send next."""
        with self._mutex:
            self._problem = self._problem or error

    def _tell(self, item: _Item, step: Step, sent: int) -> None:
        number, blob = item
        if self._report is not None and number:
            with self._mutex:
                self._report(
                    Progress(str(blob.digest), number, len(self._parts.layers), step, sent, blob.size)
                )

    def check_absent(self, child: Descriptor) -> None:
        """What the index names and the store lacks must be at the registry."""
        path = f"/v2/{self._reference.repository}/manifests/{child.digest}"
        headers = {"Accept": child.media_type}
        with self._request("HEAD", path, (200, 404), headers=headers) as answer:
            if answer.status == 200:
                return
        what = f"manifest for {child.platform}" if child.platform is not None else "manifest"
        here = self._parts.platforms
        raise NotFound(
            f"{self._reference.familiar}: it is an index whose {what}, {child.digest}, is neither in the "
            "store nor at the registry. Push the image of one platform alone: isobox push --platform "
            f"{here[0] if here else 'PLATFORM'} {self._reference.familiar}"
        )

    def put(self, document: _Document) -> None:
        """Have the registry take an index or a manifest, all of whose parts it has."""
        name = document.name or str(self._reference.tag or document.descriptor.digest)
        path = f"/v2/{self._reference.repository}/manifests/{name}"
        headers = {"Content-Type": document.descriptor.media_type}
        with self._request("PUT", path, (201,), headers=headers, body=document.data, retry=True) as answer:
            check_digest(answer, document.descriptor.digest)

    def _request(self, method: str, path: str, expect: tuple[int, ...], **given: Any) -> Response:
        return self._client.request(
            method, path, repository=self._reference.repository, actions=ACTIONS, expect=expect, **given
        )
