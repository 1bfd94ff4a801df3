"""A folder in a bucket: an object appears when its upload is complete."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from seediff_jax.files.folder_base import Folder, require_inside


class BucketFolder(Folder):
    """A folder of any other filesystem that fsspec knows.

    Every path is literal: no call that expands patterns is made.
    """

    def __init__(self, url: str, root: str, filesystem: Any):
        super().__init__(url, root)
        self.filesystem = filesystem

    def write_all(self, files: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        upload = self.filesystem.pipe_file
        for group in (files, after):
            tasks = {n: functools.partial(upload, self._place(n), c) for n, c in group.items()}
            self._at_once(tasks)

    def put(self, name: str, source: Path) -> None:
        with self._named(name):
            self.filesystem.put_file(str(source), self._place(name))
            source.unlink()

    def read(self, name: str) -> bytes:
        with self._named(name):
            return self.filesystem.cat_file(self._place(name))

    def describe(self, name: str, size: int | None = None) -> dict[str, Any]:
        content = self.read(name)
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def size(self, name: str) -> int:
        with self._named(name):
            return self.filesystem.size(self._place(name))

    def exists(self, name: str = "") -> bool:
        with self._named(name):
            # Some clients cache listings while other hosts write. Their own `exists` treats every
            # error as absence.
            self.filesystem.invalidate_cache()
            try:
                self.filesystem.info(self._place(name))
            except FileNotFoundError:
                return False
            return True

    def names(self, folder: str = "") -> list[str]:
        with self._named(folder):
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.ls(self._place(folder), detail=False)
            except FileNotFoundError:
                return []
        # Bucket consoles create an empty object with the name of the folder.
        inside = (entry.strip("/") for entry in found)
        own = self._place(folder).strip("/")
        return sorted({entry.rsplit("/", 1)[-1] for entry in inside if entry != own} - {""})

    def remove(self, name: str) -> None:
        path = self._place(name)
        with self._named(name):
            self.filesystem.invalidate_cache()
            found = self.filesystem.find(path, withdirs=True, detail=True)
        if not isinstance(found, dict):  # adlfs lists a single file by its name only
            found = {place: {} for place in found}
        # Some versions of clients find all objects whose names begin with the path.
        own = {k: v for k, v in found.items() if f"{k}/".startswith(f"{path}/")}
        folders = {place for place, facts in own.items() if facts.get("type") == "directory"}
        # Not `rm`, which reads brackets, stars and question marks in a path as a pattern.
        remove, prefix = self.filesystem.rm_file, len(self.root) + 1
        files = own.keys() - folders
        self._at_once({k[prefix:]: functools.partial(_remove_object, remove, k) for k in files})
        for place in sorted(folders, reverse=True):
            with suppress(Exception):  # most buckets have no folders that could be removed
                self.filesystem.rmdir(place)

    def make(self, folder: str = "") -> None:
        self._place(folder)
        # A folder comes with its first file. The clients' own calls would create a missing bucket,
        # but its name is more likely misspelled.

    def _place(self, name: str) -> str:
        if not name:
            return self.root
        require_inside(name)
        return f"{self.root}/{name}"


def _remove_object(remove: Callable[[str], None], path: str) -> None:
    with suppress(FileNotFoundError):
        remove(path)
