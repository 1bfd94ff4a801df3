"""A folder to write to, on a disk or in a bucket: every file appears whole or not at all.

    folder_base     what a folder can do
    disk_folder     on a disk of this machine
    bucket_folder   `gs://`, `s3://` and others, through fsspec, where the client is installed

Nothing outside the folder is read or written: names stay within it, and symbolic links are not
followed.
"""

import os
import re

import fsspec
from fsspec.implementations.local import LocalFileSystem

from seediff_jax.errors import UserError, shown
from seediff_jax.files.bucket_folder import BucketFolder
from seediff_jax.files.disk_folder import TEMPORARY, DiskFolder
from seediff_jax.files.folder_base import LONGEST, Folder, name_in_errors
from seediff_jax.files.paths import expand_path, url_scheme

__all__ = ["LONGEST", "TEMPORARY", "Folder", "name_in_errors", "open_folder", "open_parent"]

_CLIENTS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


def open_folder(url: str | os.PathLike[str]) -> Folder:
    """Finds the filesystem of a folder; the folder need not exist.

    Args:
        url: a path, see `expand_path`, or a URL such as `gs://bucket/folder`.

    Raises:
        UserError: the kind of URL is not known, or its client is not installed.
    """
    url = expand_path(url)
    scheme = url_scheme(url)
    if scheme is None and not re.match(r"[\w.+-]+::.*://", url):
        return DiskFolder(url, os.path.abspath(url))
    try:
        # Not fsspec's url_to_fs, which reads "::" within a URL as a chain of filesystems.
        kind = fsspec.get_filesystem_class(scheme or url.partition("://")[0])
        filesystem = kind(**kind._get_kwargs_from_urls(url))
        root = str(kind._strip_protocol(url))
    except ImportError as error:
        package = _CLIENTS.get(scheme)
        reason = (
            f"needs {package}: pip install {package}" if package else f"cannot be used: {error}"
        )
        raise UserError(f"{shown(url)} {reason}") from error
    except Exception as error:  # of any client
        raise UserError(
            f"{shown(url)}: {shown(str(error))}; a path or a URL such as gs://bucket/folder is "
            "needed"
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        return DiskFolder(url, root)
    if found := re.findall(r"[*?\[\]]", url):
        raise UserError(
            f"{shown(url)} contains {found[0]}, which tools for buckets take for a pattern of "
            "several names; choose a name without *, ?, [ and ]"
        )
    return BucketFolder(url, root, filesystem)


def open_parent(url: str) -> tuple[Folder, str]:
    """Opens the folder of a file, and returns the file's name in it.

    Args:
        url: a path or URL of a file, as of `open_folder`.

    Raises:
        UserError: as `open_folder`, or there is no folder in a URL, as in gs://list.txt.
    """
    place, slash, name = url.rpartition("/")
    if url_scheme(url) and not url_scheme(place):
        raise UserError(f"{shown(url)} names no folder; write gs://bucket/{shown(name)}")
    return open_folder(place or slash or "."), name
