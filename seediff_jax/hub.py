"""Model folders on the Hugging Face hub: only the needed files, and the cache when offline."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from seediff_jax.model_tokenizers import TOKENIZER_FOLDERS
from seediff_jax.models.names import COMPONENTS
from seediff_jax.weight_files import choose_weight_files

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def is_hub_id(name: str) -> bool:
    """Whether the name has the form `owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def needed_files(names: Sequence[str]) -> list[str]:
    """Of all files of a diffusers repository, those that a model is read from."""
    wanted = set(config_files(names))
    for component in COMPONENTS:
        inside = [name.split("/")[1] for name in names if re.fullmatch(f"{component}/[^/]+", name)]
        wanted |= {f"{component}/{name}" for name in choose_weight_files(component, inside)}
    return [name for name in names if name in wanted]


def config_files(names: Sequence[str]) -> list[str]:
    """Of all files of a diffusers repository, those that are no weights."""
    configs = [f"{component}/config.json" for component in COMPONENTS]
    wanted = {"model_index.json", "capture.json", "scheduler/scheduler_config.json", *configs}
    for folder in TOKENIZER_FOLDERS:
        wanted |= {f"{folder}/{name}" for name in _TOKENIZER_FILES}
    return [name for name in names if name in wanted]


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """Of all files of a repository, those of its tokenizers, in their folders or at the top."""
    wanted = {f"{folder}/{name}" for folder in TOKENIZER_FOLDERS for name in _TOKENIZER_FILES}
    inside = [name for name in names if name in wanted]
    return inside or [name for name in names if name in _TOKENIZER_FILES]


def fetch(
    hub_id: str,
    revision: str | None = None,
    choose: Callable[[Sequence[str]], list[str]] = needed_files,
) -> Path:
    """Downloads what is needed of a repository into the hub's cache, or finds it there.

    Without a network the cached files are used, as with HF_HUB_OFFLINE=1.

    Args:
        hub_id: "owner/model".
        revision: a branch, a tag or a commit; None is the main branch.
        choose: picks the needed files out of all.

    Raises:
        ValueError: there is no such model or revision, it may not be read, or there is neither
            network nor a cached copy.
    """
    name = repr(hub_id) + (f" at revision {revision!r}" if revision else "")
    try:
        files = choose(huggingface_hub.HfApi().list_repo_files(hub_id, revision=revision))
        found = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=files)
        return Path(found)
    # A network failure is an exception of whatever HTTP library huggingface_hub is built on.
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if status < 500:
            raise ValueError(
                f"{name}: no such folder, and the hub refuses a model of this name: {error}"
            ) from error
        reason = error
    try:
        found = huggingface_hub.snapshot_download(hub_id, revision=revision, local_files_only=True)
        return Path(found)
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name}: no such folder, the Hugging Face hub cannot be reached ({reason}), and "
            "its cache has no copy; connect to the network once, or give a local folder"
        ) from reason
