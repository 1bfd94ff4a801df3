"""Inputs and runs that tests of several files compare with; made once, and not to be changed."""

import pytest

from seediff_jax.main import main
from tests.helpers.driver_processes import serving
from tests.helpers.sharded_runs import IMAGES, SHARD_SIZE, files
from tests.helpers.small_runs import command, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """The folder of a small model and of a prompt file."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def made(inputs, tmp_path_factory):
    """The folder of a complete run of five images."""
    folder = tmp_path_factory.mktemp("made") / "out"
    assert main(command(inputs, folder)) == 0
    return folder


@pytest.fixture(scope="session")
def server(inputs, tmp_path_factory):
    """Starts processes of the driver."""
    with serving(inputs, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for compiled programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run(inputs):
    """The command line of a run into a folder, with more flags."""
    sizes = f"--num_images={IMAGES} --batch_size=1 --shard_size={SHARD_SIZE}"
    return lambda folder, *flags: command(inputs, folder, *sizes.split(), *flags)


@pytest.fixture(scope="session")
def reference(run, tmp_path_factory):
    """Every file of a run without incident, on the eight devices of this process."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    assert main(run(folder)) == 0
    return files(folder)
