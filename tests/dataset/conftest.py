"""A complete dataset folder in all formats, made once."""

import os
import shutil

import pytest

from tests.helpers.stored_runs import run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A complete folder in all formats; not to be changed."""
    place = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        run(place)
    return place


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(made, tmp_path / "out")
