"""Verifies and repairs dataset folders: prints what is damaged and returns the exit status."""

import contextlib

from tqdm import tqdm

from seediff_jax.dataset.lock import hold_lock
from seediff_jax.dataset.repair import repair
from seediff_jax.dataset.settings_file import read_dataset_settings, settings_files
from seediff_jax.dataset.verify import verify
from seediff_jax.driver.plan import counted
from seediff_jax.driver.signals import listening
from seediff_jax.errors import listed
from seediff_jax.files.folder import Folder

DIFFERENT = 4
"""Exit status where something is not as it was written."""


def verify_folder(folder: Folder, repairs: bool) -> int:
    """Prints what is damaged, and removes it if `repairs`; returns the exit status."""
    settings = read_dataset_settings(folder)  # before the lock, which would create the folder
    # Files that another run is writing would look damaged.
    with listening(), hold_lock(folder) if repairs else contextlib.nullcontext():
        with tqdm(unit="sample") as progress:
            problems = verify(folder, progress.update)
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{folder}: all is as it was written")
            return 0
        if not repairs:
            return DIFFERENT
        if not any(problem.is_damage for problem in problems):
            print(f"{folder}: nothing is damaged; there is nothing to repair")
            return 0
        count = repair(folder, problems)
    named = {problem.name for problem in problems}
    if restored := [name for name in settings_files(settings) if name in named]:
        print(f"restored {listed(restored)}")
    if any(problem.needs_run for problem in problems):
        print(
            f"removed damaged files, with {counted(count, 'sample')}; run the original command "
            "again to make them"
        )
    return DIFFERENT
