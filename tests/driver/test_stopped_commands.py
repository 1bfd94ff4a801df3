"""Commands on a dataset in a bucket release its lock when a signal ends them."""

import functools
import os
import signal
import threading

import pytest

from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.driver import verify
from seediff_jax.driver.signals import INTERRUPTED, STOPPED
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.review import copies
from tests.helpers import stored_runs


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A folder with a complete dataset, in a bucket that has no locks of its own."""
    folder = open_folder(f"memory://{tmp_path_factory.mktemp('bucket').name}/made")
    stored_runs.run(folder.url, formats=("files",))
    yield folder
    folder.filesystem.store.clear()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, STOPPED), (signal.SIGHUP, STOPPED), (signal.SIGINT, INTERRUPTED)],
)
@pytest.mark.parametrize("command", ["repair", "filter"])
def test_a_command_that_a_signal_ends_holds_no_lock(
    bucket, monkeypatch, capsys, command, number, status
):
    source = bucket.url
    folder = bucket if command == "repair" else open_folder(f"{source}-{number}")
    held = []

    def stop(*_, **__):
        held.append(folder.exists(LOCK))
        os.kill(os.getpid(), number)
        threading.Event().wait(20)
        pytest.fail("went on")

    for module in (verify, copies):
        monkeypatch.setattr(module, "hold_lock", functools.partial(hold_lock, beat_seconds=0.02))
    monkeypatch.setattr(verify, "verify", stop)
    monkeypatch.setattr(copies.Copier, "copy", stop)
    more = [] if command == "repair" else ["--min_score=0", f"--output={folder.url}"]
    assert main(["seediff", command, source, *more]) == status
    assert held == [True] and not folder.exists(LOCK)
    assert "run the same command again" in capsys.readouterr().err
