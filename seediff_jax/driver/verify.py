"""What --verify and --repair print, and their exit status."""

import contextlib

from tqdm import tqdm

from seediff_jax.dataset.lock import hold_lock
from seediff_jax.dataset.repair import repair
from seediff_jax.dataset.settings_file import read_dataset_settings
from seediff_jax.dataset.verify import verify
from seediff_jax.driver.plan import counted
from seediff_jax.files.folder import Folder

DIFFERENT = 4
"""Exit status where something is not as it was written."""


def verify_folder(folder: Folder, repairs: bool) -> int:
    """Prints what is damaged, and removes it if `repairs`; returns the exit status."""
    read_dataset_settings(folder)  # before the lock, which would make the folder
    # What another run is writing would be taken for damage.
    with hold_lock(folder) if repairs else contextlib.nullcontext():
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
    if any(problem.needs_run for problem in problems):
        print(
            f"removed what was damaged, {counted(count, 'sample')} among it; run the original "
            "command to make it again"
        )
    return DIFFERENT
