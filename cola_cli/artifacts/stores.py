"""Addresses of object stores, `s3://bucket/name`, `gs://...`, `az://...`, and what is asked of a store.

Every object has one path on this machine, below `cache()`: what is there is a copy of it (`mirror.py`).
Credentials are read by the library obstore from where its providers look for them; none passes through here.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

from cola_cli.errors import ColaError, InputError, OutputConflict, UsageError, translations

_ADDRESS = re.compile(r"(s3|gs|az)://([A-Za-z0-9][\w.-]*)((?:/[^/]+)*)/?")
_LIKE_ONE = re.compile(r"(s3|gs|az):/", re.IGNORECASE)  # s3:x is a name as any other
OBJECTS = "objects"  # within the cache: the copies
RETRIES = 6
RETRY_SECONDS = 60
TIMEOUT = "120s"  # of a request; large objects are sent and fetched in several
# In what is said of the services that are asked for credentials where none are given.
NO_CREDENTIALS = (
    "169.254.169.254",
    "/latest/",
    "metadata.google",
    "must be specified",
    "MissingAccount",
    "token request",
)
# Where the credentials of each kind of store come from.
CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL of another service.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or a token.",
}

EMULATOR = "STORAGE_EMULATOR_HOST"  # for Google's own libraries the address of another service than its own
# Variables that name another service than the provider's own.
ENDPOINTS = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", EMULATOR,
)  # fmt: skip


class Found(NamedTuple):
    """An object: its key in the bucket, bytes, and the tag of its version."""

    key: str
    bytes: int
    tag: str


class Missing(Exception):
    """There is no such object."""


class Changed(Exception):
    """The object is not of the version that a conditional put expects."""


class Unchanged(Exception):
    """The object is of the version that is known."""


def cache() -> Path:
    """The folder of copies: COLA_CACHE, or `cola` in the user's folder of caches."""
    if named := os.environ.get("COLA_CACHE"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cola").absolute()


def place_of(text: str) -> Path | None:
    """The path on this machine of the object or folder at an address; None for any other text.

    Raises UsageError for what is almost an address, such as `s3:/bucket/name`.
    """
    if not _LIKE_ONE.match(text) or Path(text).exists():
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or {".", ".."} & {*found[3].split("/")} or not text.isprintable():
        kind = text[:2].lower()
        raise UsageError(
            f"{text} is not an address of an object store.",
            f"Write it as {kind}://bucket/folder/name, without empty names, '.' and '..'.",
        )
    return cache() / OBJECTS / found[1] / found[2] / found[3].lstrip("/")


def address_of(path: Path) -> str | None:
    """The address of an object or folder whose path on this machine this is; None for any other path."""
    root = str(cache() / OBJECTS) + "/"
    text = str(path)
    if not text.startswith(root):
        return None
    scheme, _, rest = text.removeprefix(root).partition("/")
    return f"{scheme}://{rest}" if rest else None


def with_addresses(text: str) -> str:
    """A text for people in which paths within the cache are the addresses that they stand for."""
    root = str(cache() / OBJECTS)
    return re.sub(re.escape(root) + r"/(s3|gs|az)/", r"\1://", text) if root in text else text


translations.append(with_addresses)


class Place:
    """An object, or the folder of several, in a bucket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.scheme, _, rest = address.partition("://")
        bucket, _, self.key = rest.partition("/")
        self._bucket = f"{self.scheme}://{bucket}"

    @classmethod
    def of(cls, path: Path) -> Place | None:
        """That of a path on this machine, None if it lies in no store."""
        address = address_of(path)
        return None if address is None else cls(address)

    def put(self, data: bytes | Path, only: str | None = None) -> str:
        """Write the object in one step; returns the tag of its version.

        only: "" for an object that must not be there, or the tag of the version to replace. Raises Changed.
        """
        obstore = self._library
        mode: Any = "overwrite" if only is None else {"e_tag": only} if only else "create"
        # what is sent in several pieces cannot be conditional
        pieces = {} if only is None else {"use_multipart": False}
        with self._errors(writing=True):
            if only and self.scheme == "gs":  # whose conditions are of generations, not of tags
                now = obstore.head(self._store, self.key)
                if now["e_tag"] != only:
                    raise Changed(self.address)
                mode = {"e_tag": only, "version": now["version"]}
            return obstore.put(self._store, self.key, data, mode=mode, **pieces)["e_tag"] or ""

    def get(self, unless: str | None = None) -> tuple[bytes, str]:
        """Content and tag. Raises Unchanged when the tag is `unless`, Missing when there is no object."""
        obstore = self._library
        options: Any = {"if_none_match": unless} if unless else None
        with self._errors():
            found = obstore.get(self._store, self.key, options=options)
            return bytes(found.bytes()), found.meta["e_tag"] or ""

    def download(self, path: Path, expect: Callable[[int], None]) -> str:
        """Write the content to `path`, in pieces, so that memory stays flat; returns the tag.

        expect: is told before how many bytes these are.
        """
        obstore = self._library
        with self._errors():
            found = obstore.get(self._store, self.key)
            expect(found.meta["size"])
            with open(path, "wb") as file:
                for piece in found.stream():
                    file.write(piece)
                size = file.tell()
            if size != found.meta["size"]:
                raise InputError(f"{self.address} came incomplete.", "Run the same command again.")
            return found.meta["e_tag"] or ""

    def head(self) -> Found:
        """What is known of the object. Raises Missing."""
        obstore = self._library
        with self._errors():
            return _found(obstore.head(self._store, self.key))

    def list(self) -> Iterator[Found]:
        """All objects below the folder."""
        obstore = self._library
        with self._errors():
            for batch in obstore.list(self._store, self.key or None):
                yield from map(_found, batch)

    def copy_from(self, other: Place) -> str:
        """Make the object a copy of another of the same bucket; returns the tag."""
        obstore = self._library
        with self._errors(writing=True):
            obstore.copy(self._store, other.key, self.key)
        return self.head().tag

    def delete(self) -> None:
        """Remove the object, if there is one."""
        obstore = self._library
        try:
            with self._errors(writing=True):
                obstore.delete(self._store, self.key)
        except Missing:
            return

    def require_conditional_puts(self) -> None:
        """Raise OutputConflict unless the store refuses a put whose condition is not met; it must exist."""
        data, _ = self.get()
        for condition in ("", '"0123456789abcdef0123456789abcdef"'):
            try:
                self.put(data, condition)
            except Changed:
                continue
            raise self._no_conditions()

    def _no_conditions(self) -> OutputConflict:
        return OutputConflict(
            f"the store of {self.address} has no conditional puts, so two writers could not be told apart.",
            "Use a store that has them (If-None-Match and If-Match), or write to a disk and copy.",
        )

    @property
    def _library(self) -> Any:
        """obstore. Raises UsageError where it is not installed."""
        try:
            import obstore
        except ImportError:
            raise UsageError(
                f"{self.address}: object stores need obstore.",
                "Install it: pip install 'cola-cli[stores]'",
            ) from None
        return obstore

    @property
    def _store(self) -> Any:
        with self._errors():
            return _store(self._bucket)

    @contextmanager
    def _errors(self, writing: bool = False) -> Iterator[None]:
        """Say what went wrong between here and the store, in words that hold no credentials."""
        exceptions = self._library.exceptions
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from None
            raise Missing(self.address) from None
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise Changed(self.address) from None
        except exceptions.NotModifiedError:
            raise Unchanged(self.address) from None
        except exceptions.BaseError as error:
            raise self._failure(str(error), writing) from None

    def _no_bucket(self) -> ColaError:
        return InputError(
            f"{self.address}: there is no bucket {self._bucket}.",
            "Check the name and the region, or make the bucket; what is finished is kept.",
        )

    def _failure(self, text: str, writing: bool) -> ColaError:
        remedy = CREDENTIALS[self.scheme]
        if any(
            one in text for one in ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
        ):
            return self._no_bucket()
        if any(one in text for one in ("TimeTooSkewed", "RequestExpired", "AuthenticationExpired")):
            return InputError(
                f"{self.address}: the store refuses requests, as the clock of this machine is off.",
                "Set the clock, and run the same command again.",
            )
        if any(one in text for one in NO_CREDENTIALS):
            return InputError(f"{self.address}: there are no credentials for this store.", remedy)
        if re.search(r"\b40[13]\b|Unauthenticated|PermissionDenied|AccessDenied", text):
            what = "writing" if writing else "reading"
            return InputError(f"{self.address}: the store does not allow {what} this.", remedy)
        if re.search(r"\b501\b|NotImplemented|NotSupported|not supported", text) and writing:
            return self._no_conditions()
        reason = " ".join(text.partition("Debug source")[0].split())
        reason = re.sub(r"\?\S*", "", reason)  # a signed request has its signature there
        return InputError(
            f"{self.address}: the store cannot be used ({reason[:300]}).",
            "Check the connection and the address, and run the same command again; what is finished is kept.",
        )


@functools.cache
def _store(bucket: str) -> Any:
    from obstore.store import from_url

    return from_url(bucket, **_manners(bucket.partition(":")[0]))


def file_system(scheme: str) -> Any:
    """All buckets of az or gs as a file system of fsspec. Raises ImportError without obstore."""
    from obstore.fsspec import FsspecStore

    return FsspecStore(cast("Any", scheme), **_manners(scheme))


def _manners(scheme: str) -> dict[str, Any]:
    """How long a store is waited for and asked again, whether without encryption, and an emulator of it."""
    own: dict[str, Any] = {}
    if scheme == "gs" and (url := os.environ.get(EMULATOR)):
        key = {"gcs_base_url": url, "disable_oauth": True}
        key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        own = {"config": {"service_account_key": json.dumps(key)}}
    client: Any = {"timeout": TIMEOUT, "connect_timeout": "10s"}
    if any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS):
        client["allow_http"] = True  # a store on one's own network
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    return {"client_options": client, "retry_config": retry, **own}


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], meta["e_tag"] or "")
