"""Paths of flags: home folders and variables are replaced, and a URL is told from a path."""

import os
import re

import pytest

from seediff_jax.errors import UserError
from seediff_jax.files.paths import expand_path, url_scheme


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("RUNS", "/data/runs")
    monkeypatch.setenv("BUCKET", "gs://bucket")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("MISSING", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", "/home/ada"),
        ("~/x", "/home/ada/x"),
        ("~root/x", "/root/x"),
        ("a~/~", "a~/~"),
        ("./~", "./~"),
        ("$RUNS/x", "/data/runs/x"),
        ("${RUNS}x", "/data/runsx"),
        ("a/$RUNS", "a//data/runs"),
        ("$EMPTY/x", "/x"),
        ("price$5", "price$5"),
        ("100%/$", "100%/$"),
        ("${}", "${}"),
        ("$BUCKET/x", "gs://bucket/x"),
        ("s3://b$RUNS/~", "s3://b/data/runs/~"),
        ("", ""),
        ("плакаты/猫", "плакаты/猫"),
        ("run::a", "run::a"),
    ],
)
def test_home_folders_and_variables_are_replaced(text, expected):
    assert expand_path(text) == expected


def test_a_path_object_is_a_path(tmp_path):
    assert expand_path(tmp_path) == str(tmp_path)


@pytest.mark.parametrize("name", ["~no such user", "$MISSING", "a${MISSING}"])
def test_a_file_of_that_name_is_taken_where_nothing_can_be_replaced(name):
    with open(name, "w"):
        assert expand_path(name) == name


def test_a_folder_that_is_named_like_the_home_folder_does_not_hide_it():
    os.makedirs("~/x")
    assert expand_path("~/x") == "/home/ada/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$MISSING/x", "the environment variable MISSING is not set"),
        ("${MISSING}/x", "the environment variable MISSING is not set"),
        ("gs://$MISSING/x", "the environment variable MISSING is not set"),
        ("~no such user/x", "write ./~no such user/x for a file of that name"),
        ("$EMPTY", "is empty once its variables are replaced"),
        ("a\0b", r"a\x00b contains a null character"),
    ],
)
def test_what_cannot_be_replaced_is_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        expand_path(text)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("gs://bucket/a", "gs"),
        ("S3://bucket", "s3"),
        ("hf+x.y-z://a", "hf+x.y-z"),
        ("/data/a://b", None),
        ("a/b://c", None),
        ("run::a", None),
        ("filecache::gs://b/x", None),
        ("file:/a", None),
        ("gs:", None),
        (os.sep, None),
    ],
)
def test_a_url_is_what_begins_with_a_scheme(text, scheme):
    assert url_scheme(text) == scheme
