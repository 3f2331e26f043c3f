"""Models on a Hugging Face hub, through huggingface_hub: its cache, resumed downloads, tokens, offline."""

from __future__ import annotations

import glob
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cola_cli.artifacts.manifest import MANIFEST_NAME, read_manifest
from cola_cli.artifacts.reading import reason
from cola_cli.errors import InputError, UsageError

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@]+))?")
# what says which files an artifact has, or all files of the authors' layout
FIRST = (MANIFEST_NAME, "cola_dlm/*.json", "cola_dlm/*.safetensors", "tokenizer.json")


def fetch(address: str) -> Path:
    """The folder, in the hub's own cache, of the model at `hf:org/name[@revision]`.

    Only files of the artifact, or of the authors' layout, are fetched; what is cached is not fetched again.
    Raises InputError when there is no such model, or it cannot be reached and is not cached; UsageError for
    an address of another form, or without huggingface_hub.
    """
    repo, revision = parse(address)
    with hub_errors(address):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FIRST)))
        if (folder / MANIFEST_NAME).is_file():
            files = [glob.escape(record.path) for record in read_manifest(folder).files]
            folder = Path(
                snapshot_download(
                    repo, revision=folder.name, allow_patterns=[MANIFEST_NAME, *files]
                )
            )
        elif not (folder / "cola_dlm").is_dir():
            raise InputError(
                f"{address} holds no model: neither an artifact's {MANIFEST_NAME} nor cola_dlm/.",
                "Name another repository or revision.",
            )
        return folder


def upload(
    address: str, files: Mapping[str, Path | bytes], message: str, private: bool = False
) -> str:
    """Put files, by their names there, into a repository in one commit, which is returned.

    A repository that is missing is made. Raises InputError when the hub refuses or cannot be reached.
    """
    repo, revision = parse(address)
    with hub_errors(address):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(library_name="cola")
        api.create_repo(repo, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        with warnings.catch_warnings():  # it doubts that a model has Parquet files: the metrics
            warnings.simplefilter("ignore", UserWarning)
            return api.create_commit(
                repo, operations, commit_message=message, revision=revision
            ).oid


def parse(address: str) -> tuple[str, str | None]:
    """Repository and revision (None: the newest) of an address. Raises UsageError for another form."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UsageError(
            f"{address} is not an address on the hub.",
            "Write it as hf:org/name, or hf:org/name@revision.",
        )
    return found["repo"], found["revision"]


@contextmanager
def hub_errors(address: str) -> Iterator[None]:
    """Say what went wrong between here and the hub."""
    try:
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise UsageError(
            f"{address}: models on the hub need huggingface_hub.",
            "Install it: pip install 'cola-cli[hub]'",
        ) from None
    # the HTTP client's own, raised where there is no answer
    client_error: Any = errors.HfHubHTTPError.__bases__[0]
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{address} is open only to those who accepted its terms.",
            "Accept them on its page, then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no {address} on the hub, or it is private.",
            "Check the name; for a private one log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{address}: there is no such revision.", "Name a branch, a tag or a commit."
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{address}: {error}", "Write it as hf:org/name.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise InputError(
            f"{address} is not in the cache, and the hub cannot be reached.",
            "Check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, and run the same command again.",
        ) from error
    except (client_error, errors.EntryNotFoundError) as error:
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
            raise InputError(
                f"{address}: the hub does not let you do this.",
                "Log in with `hf auth login`, or set HF_TOKEN to a token that may.",
            ) from error
        if getattr(error, "response", None) is None:
            raise InputError(
                f"{address}: the hub cannot be reached ({reason(error)}).",
                "Check the connection and HF_ENDPOINT, and run the same command again.",
            ) from error
        raise InputError(
            f"{address}: the hub says: {' '.join(str(error).split())[:300]}",
            "Try again later; what is fetched is kept.",
        ) from error
