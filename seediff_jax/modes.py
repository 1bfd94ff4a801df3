"""What the driver does beside making datasets: verify one, make a sample again, tell a plan."""

from pathlib import Path

from tqdm import tqdm

from seediff_jax.dataset import Dataset
from seediff_jax.folder_settings import require_resumable
from seediff_jax.hosts import Stopped, gather, is_first, leaving_at_sigterm
from seediff_jax.make_dataset import prepare
from seediff_jax.needs import given_needs, measured_needs
from seediff_jax.planning import describe_plan
from seediff_jax.regenerate import as_made, regenerate
from seediff_jax.run_config import RunConfig
from seediff_jax.run_lock import hold_lock
from seediff_jax.shard_layout import ShardLayout
from seediff_jax.sharding import local_rows_of, make_mesh
from seediff_jax.storage import Folder, open_folder
from seediff_jax.verify import repair, verify
from seediff_jax.words import counted

DIFFERENT = 4
"""Exit status where something is not as it was written."""


def verify_folder(folder: Folder, repairs: bool) -> int:
    """Tells what is not as it was written, and forgets it if `repairs`; returns the exit status."""
    with tqdm(unit="sample") as progress:
        problems = verify(folder, progress.update)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{folder}: all is as it was written")
        return 0
    if repairs:
        with hold_lock(folder):
            count = repair(folder, problems)
        print(
            f"forgotten: {counted(count, 'shard')}; give the command of the run to make again what "
            "was there"
        )
    return DIFFERENT


def regenerate_sample(config: RunConfig, index: int) -> int:
    """Makes a sample again and tells how it differs; returns the exit status."""
    differences = regenerate(*prepare(as_made(config, index)), index)
    for line in differences or [f"sample {index} is the same to the byte"]:
        print(line)
    return DIFFERENT if differences else 0


def tell_plan(config: RunConfig, rate: float | None) -> int:
    """Tells what a run would make and need; returns the exit status."""
    folder = open_folder(config.output)
    require_resumable(folder, config.settings())
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size or 1)
    existing = int(Dataset(folder, layout, [], Path()).scan().sum())
    rows = gather(len(local_rows_of(make_mesh(config.mesh))))
    try:
        with leaving_at_sigterm():
            if rate is None:
                config, needs = measured_needs(config)
            else:
                config, needs = given_needs(config, folder, rate)
    except Stopped:
        print("stopped before the plan was known; the same command can be given again")
        return 0
    if is_first():
        print(describe_plan(config, rows, existing, needs))
    return 0
