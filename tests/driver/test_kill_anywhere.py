"""A driver that is killed at random instants, again and again, ends with the folder of one run."""

import itertools
import signal
import time

import numpy as np
import pytest

from seediff_jax.dataset.formats import FORMATS
from seediff_jax.driver.cli import SOME_FAILED
from seediff_jax.files.folder import open_folder
from tests.helpers.crashes import tree
from tests.helpers.small_runs import command


class Killer:
    """Starts runs and kills each at a random instant of the time that a whole one takes.

    Args:
        start: starts a run into a folder.
        status: of a run that comes to its end.
        parent: of all folders.
        seed: of the instants.
    """

    def __init__(self, start, status, parent, seed):
        self._start, self._status, self._random = start, status, np.random.default_rng(seed)
        self._folders = (parent / f"out-{number}" for number in itertools.count())
        self.kills = self.finished = 0
        for _ in range(2):  # the first one finds nothing cached
            whole = next(self._folders)
            begin = time.monotonic()
            self._end(start(whole))
            self._seconds = time.monotonic() - begin
        self._expected = tree(open_folder(whole))

    def kill(self, count):
        """Kills so many runs; all folders that were begun are completed and compared."""
        folder = next(self._folders)
        while self.kills < count:
            run = self._start(folder)
            instant = time.monotonic() + self._random.uniform(0, self._seconds)
            while run.status() is None and time.monotonic() < instant:
                time.sleep(0.005)
            run.kill()
            if run.wait() == -signal.SIGKILL:
                self.kills += 1
            else:
                self._end(run)
                self._compare(folder)
                folder = next(self._folders)
        self._end(self._start(folder))
        self._compare(folder)

    def _end(self, run):
        assert run.wait() == self._status, run.err

    def _compare(self, folder):
        assert tree(open_folder(folder)) == self._expected
        self.finished += 1


def simulated(server, inputs, seed):
    """Starts runs of simulated samples in every format, of which one fails."""
    flags = ["--num_images=20", "--shard_size=6", "--soft_masks=npz", "--seed_maps"]
    flags += [f"--format={','.join(FORMATS)}", "--mask_method=cross_attention", f"--seed={seed}"]
    options = {"simulated": True, "poison": 9, "pause": 0.01}
    return lambda folder: server.start(command(inputs, folder, *flags), **options)


def test_a_run_without_a_model_that_is_killed_anywhere_is_completed(server, inputs, tmp_path):
    killer = Killer(simulated(server, inputs, 0), SOME_FAILED, tmp_path, seed=0)
    killer.kill(25)
    assert killer.finished


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_runs_without_a_model_that_are_killed_anywhere(server, inputs, tmp_path, seed):
    Killer(simulated(server, inputs, seed), SOME_FAILED, tmp_path, seed).kill(100)


@pytest.mark.slow
def test_two_hundred_runs_that_are_killed_anywhere(server, inputs, tmp_path):
    def start(folder):
        flags = ["--num_images=24", "--batch_size=1", "--shard_size=5"]
        flags.append(f"--compilation_cache={tmp_path / 'cache'}")
        return server.start(command(inputs, folder, *flags), pause=0.1)

    killer = Killer(start, 0, tmp_path, seed=7)
    killer.kill(200)
    print(f"{killer.kills} kills, {killer.finished} folders")
