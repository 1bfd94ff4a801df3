"""Downloads the needed files of a model from the Hugging Face hub, or finds them in its cache."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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

Parts = Literal["all", "configs", "tokenizers"]
"""What is fetched of a model: everything, all except the weights, or the tokenizers alone."""


def is_hub_id(name: str) -> bool:
    """Whether the name has the form `owner/model`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and name.isascii()


def needed_files(names: Sequence[str], parts: Parts = "all") -> list[str]:
    """Picks the files of these parts of a model from those of a repository.

    Tokenizers are in their folders, or at the top of a repository of a tokenizer.
    """
    if parts == "tokenizers":
        inside = [name for name in names if name in _TOKENIZER_PATHS]
        return inside or [name for name in names if name in _TOKENIZER_FILES]
    wanted = {INDEX, "capture.json", SCHEDULER, *_TOKENIZER_PATHS}
    for component in COMPONENTS:
        wanted.add(f"{component}/config.json")
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{component}/")]
        chosen = choose_weight_files(component, inside) if parts == "all" else ()
        wanted |= {f"{component}/{name}" for name in chosen}
    return [name for name in names if name in wanted]


def missing_files(folder: Path, parts: Parts = "all") -> list[str]:
    """Lists the files that these parts of a model need and a folder lacks."""
    components, needed = [], []
    if parts == "tokenizers":
        tokenizers = tokenizer_folders(folder).values()
    elif not (folder / INDEX).exists():
        return [INDEX]
    else:
        _, components = read_model_index(folder)
        needed = [SCHEDULER, *(f"{name}/config.json" for name in components)]
        names = TOKENIZER_FOLDERS[: 2 if "text_encoder_2" in components else 1]
        tokenizers = [folder / name for name in names]
    for path in tokenizers:
        inside = path.relative_to(folder)
        needed += [(inside / name).as_posix() for name in vocabulary_files(path)]
    missing = [name for name in needed if not (folder / name).exists()]
    for name in components if parts == "all" else ():
        missing += [f"{name}/{file}" for file in missing_weight_files(folder / name, name)]
    return missing


def fetch(hub_id: str, revision: str | None = None, parts: Parts = "all") -> Path:
    """Downloads parts of a model into the hub's cache, or finds them there.

    The hub is asked once; without a network, or with HF_HUB_OFFLINE=1, the cached files are used.

    Raises:
        UserError: there is no such model or revision, it may not be read, it lacks needed files,
            or there is neither network nor a complete cached copy.
    """
    name = repr(hub_id) + (f" at revision {revision!r}" if revision else "")
    download = functools.partial(huggingface_hub.snapshot_download, hub_id, revision=revision)
    unreachable = ""
    try:
        folder = Path(download(allow_patterns=needed_files(_list_files(hub_id, revision), parts)))
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
    absent = listed(missing_files(folder, parts))
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
