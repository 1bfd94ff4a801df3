"""Model folders on the Hugging Face hub: only the needed files, and the cache when offline."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from seediff_jax.model_index import is_xl, read_model_index
from seediff_jax.model_tokenizers import TOKENIZER_FOLDERS, tokenizer_folders
from seediff_jax.models.names import COMPONENTS
from seediff_jax.weight_files import CONVERT, choose_weight_files, missing_weight_files

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Too slow, too many requests: of the moment, as are all errors of a server.
_PASSING = (408, 429)


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


def missing_files(folder: Path) -> list[str]:
    """What a model needs and a folder of the hub's cache lacks.

    Raises:
        ValueError: its model_index.json or an index of shards is damaged or of no use here.
    """
    missing = missing_config_files(folder)
    if "model_index.json" in missing:
        return missing
    for name in _components(folder):
        missing += [f"{name}/{file}" for file in missing_weight_files(folder, name)]
    return missing


def missing_config_files(folder: Path) -> list[str]:
    """What a model's configs and tokenizers need and a folder of the hub's cache lacks.

    Raises:
        ValueError: its model_index.json is damaged or of no use here.
    """
    if not (folder / "model_index.json").exists():
        return ["model_index.json"]
    components = _components(folder)
    configs = ["scheduler/scheduler_config.json", *(f"{name}/config.json" for name in components)]
    missing = [name for name in configs if not (folder / name).exists()]
    for name in TOKENIZER_FOLDERS[: 2 if "text_encoder_2" in components else 1]:
        missing += [f"{name}/{file}" for file in _missing_of_tokenizer(folder / name)]
    return missing


def missing_tokenizer_files(folder: Path) -> list[str]:
    """What the tokenizers of a folder of the hub's cache need and it lacks."""
    own = tokenizer_folders(folder).values()
    missing = [path / file for path in own for file in _missing_of_tokenizer(path)]
    return [path.relative_to(folder).as_posix() for path in missing]


def fetch(
    hub_id: str,
    revision: str | None = None,
    choose: Callable[[Sequence[str]], list[str]] = needed_files,
    missing: Callable[[Path], list[str]] = missing_files,
) -> Path:
    """Downloads what is needed of a repository into the hub's cache, or finds it there.

    The hub is asked once; without a network the cached files are used, as with HF_HUB_OFFLINE=1.

    Args:
        hub_id: "owner/model".
        revision: a branch, a tag or a commit; None is the main branch.
        choose: picks the needed files out of all.
        missing: names those that a folder lacks.

    Raises:
        ValueError: there is no such model or revision, it may not be read, it lacks needed files,
            or there is neither network nor a complete cached copy.
    """
    name = repr(hub_id) + (f" at revision {revision!r}" if revision else "")
    download = functools.partial(huggingface_hub.snapshot_download, hub_id, revision=revision)
    try:
        folder = Path(download(allow_patterns=choose(_list_files(hub_id, revision))))
    # A network failure is an exception of whatever HTTP library huggingface_hub is built on.
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if status < 500 and status not in _PASSING:
            raise ValueError(
                f"{name}: no such folder, and the hub refuses a model of this name: {error}"
            ) from error
        return _find_cached(name, download, missing, error)
    if absent := missing(folder):
        raise ValueError(
            f"{name} has no {', '.join(absent)}; a diffusers repository with safetensors is "
            f"needed; {CONVERT.format(loader='from_pretrained', source=hub_id)}"
        )
    return folder


def commit_of(folder: Path) -> str | None:
    """The commit of which a folder is the cache's copy; None for other folders and files."""
    is_copy = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if is_copy else None


def _find_cached(
    name: str,
    download: Callable[..., str],
    missing: Callable[[Path], list[str]],
    reason: Exception,
) -> Path:
    """The cached copy, where `reason` keeps it from being compared with the hub's."""
    unreachable = f"the Hugging Face hub cannot be reached ({reason})"
    try:
        # No patterns at all would mean all files of the repository, needed or not.
        folder = Path(download(local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name}: no such folder, {unreachable}, and its cache has no copy; connect to the "
            "network once, or give a local folder"
        ) from reason
    if absent := missing(folder):
        raise ValueError(
            f"{name}: {unreachable}, and its cache lacks {', '.join(absent)}; connect to the "
            "network once, or give a local folder"
        ) from reason
    return folder


def _list_files(hub_id: str, revision: str | None) -> list[str]:
    """The files of a repository; `list_repo_files` would retry for 20 s without a network."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, timeout=timeout)
    return [file.rfilename for file in info.siblings or ()]


def _components(folder: Path) -> list[str]:
    xl = is_xl(read_model_index(folder))
    return [name for name in COMPONENTS if xl or name != "text_encoder_2"]


def _missing_of_tokenizer(folder: Path) -> list[str]:
    if (folder / "tokenizer.json").exists():
        return []
    return [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
