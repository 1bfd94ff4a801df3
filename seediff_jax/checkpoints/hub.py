"""Downloads the needed files of a model from the Hugging Face hub, or finds them in its cache."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from seediff_jax.checkpoints.model_config import INDEX, SCHEDULER, read_model_index
from seediff_jax.checkpoints.safetensors_files import (
    CONVERT,
    choose_weight_files,
    missing_weight_files,
)
from seediff_jax.errors import UserError, listed, shown
from seediff_jax.models.model import COMPONENTS
from seediff_jax.prompts.tokenizer import TOKENIZER_FOLDERS, tokenizer_folders, vocabulary_files

_TOKENIZER_FILES = {
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
}
_TOKENIZER_PATHS = {f"{folder}/{name}" for folder in TOKENIZER_FOLDERS for name in _TOKENIZER_FILES}
# Timeout and too many requests: these pass, like all errors of a server.
_PASSING = (408, 429)
_CONNECT = "connect to the network once, or give a local folder"


def is_hub_id(name: str) -> bool:
    """Whether the name has the form `owner/model`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and name.isascii()


def needed_files(names: Sequence[str], *, weights: bool = True) -> list[str]:
    """Picks the files of a model, or all of them except the weights, from a repository."""
    wanted = {INDEX, "capture.json", SCHEDULER, *_TOKENIZER_PATHS}
    for component in COMPONENTS:
        wanted.add(f"{component}/config.json")
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{component}/")]
        chosen = choose_weight_files(component, inside) if weights else ()
        wanted |= {f"{component}/{name}" for name in chosen}
    return [name for name in names if name in wanted]


def missing_files(folder: Path, *, weights: bool = True) -> list[str]:
    """Lists the files that a model, or all of it except the weights, needs and a folder lacks."""
    if not (folder / INDEX).exists():
        return [INDEX]
    _, components = read_model_index(folder)
    needed = [SCHEDULER, *(f"{name}/config.json" for name in components)]
    for name in TOKENIZER_FOLDERS[: 2 if "text_encoder_2" in components else 1]:
        needed += [f"{name}/{file}" for file in vocabulary_files(folder / name)]
    missing = [name for name in needed if not (folder / name).exists()]
    for name in components if weights else ():
        missing += [f"{name}/{file}" for file in missing_weight_files(folder / name, name)]
    return missing


def fetch(hub_id: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Downloads a model into the hub's cache, or finds it there.

    The hub is asked once; without a network, or with HF_HUB_OFFLINE=1, the cached files are used.

    Raises:
        UserError: there is no such model or revision, it may not be read, it lacks needed files,
            or there is neither network nor a complete cached copy.
    """
    choose = functools.partial(needed_files, weights=weights)
    return _fetch(hub_id, revision, choose, functools.partial(missing_files, weights=weights))


def fetch_tokenizers(hub_id: str) -> Path:
    """Downloads the tokenizers of a repository, or finds them in the cache; see `fetch`."""
    return _fetch(hub_id, None, tokenizer_files, missing_tokenizer_files)


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """Picks the files of the tokenizers, in their folders or at the top of a repository."""
    inside = [name for name in names if name in _TOKENIZER_PATHS]
    return inside or [name for name in names if name in _TOKENIZER_FILES]


def missing_tokenizer_files(folder: Path) -> list[str]:
    """Lists the files that the tokenizers of a cached folder need and lack."""
    folders = tokenizer_folders(folder).values()
    needed = [inside / name for inside in folders for name in vocabulary_files(inside)]
    return [path.relative_to(folder).as_posix() for path in needed if not path.exists()]


def _fetch(
    hub_id: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], list[str]],
    missing: Callable[[Path], list[str]],
) -> Path:
    name = repr(hub_id) + (f" at revision {revision!r}" if revision else "")
    download = functools.partial(huggingface_hub.snapshot_download, hub_id, revision=revision)
    unreachable = ""
    try:
        folder = Path(download(allow_patterns=choose(_list_files(hub_id, revision))))
    # A network failure is an exception of whatever HTTP library huggingface_hub is built on.
    except Exception as error:
        reason = shown(str(error) or type(error).__name__, 300)
        # An error of the hub has a response, unless the connection was lost on the way.
        status = getattr(getattr(error, "response", None), "status_code", 500)
        if status < 500 and status not in _PASSING:
            raise UserError(
                f"{name}: no such folder, and the hub refuses a model of this name: {reason}"
            ) from error
        unreachable = f"the Hugging Face hub cannot be reached ({reason}), and its cache"
        try:
            # No patterns at all would mean all files of the repository, needed or not.
            folder = Path(download(local_files_only=True, allow_patterns=[]))
        except LocalEntryNotFoundError:
            raise UserError(
                f"{name}: no such folder, {unreachable} has no copy; {_CONNECT}"
            ) from error
    absent = listed(missing(folder))
    if absent and unreachable:
        raise UserError(f"{name}: {unreachable} lacks {absent}; {_CONNECT}")
    if absent:
        raise UserError(
            f"{name} has no {absent}; a diffusers repository with safetensors is "
            f"needed; {CONVERT.format(loader='from_pretrained', source=hub_id)}"
        )
    return folder


def commit_of(folder: Path) -> str | None:
    """Returns the commit of a folder in the hub's cache; None for other folders and files."""
    is_copy = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if is_copy else None


def _list_files(hub_id: str, revision: str | None) -> list[str]:
    """Lists a repository's files; `list_repo_files` would retry for 20 s without a network."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, timeout=timeout)
    return [file.rfilename for file in info.siblings or ()]
