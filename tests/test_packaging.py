"""What is published: files of the sdist, metadata that PyPI shows, CI and Bazel's module."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import seediff_jax

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUILD = (ROOT / "BUILD").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# As GitHub's runners set them.
RUNNER = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "owner/fork",
    "GITHUB_SHA": "0123456789abcdef",
}
METADATA = "prepare_metadata_for_build_wheel"


def build(folder, environment, *hooks):
    """Runs hooks of the build backend in a copy of the tree; returns what they make."""
    names = (".git", ".venv", "build", "outputs", "runs", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*names, ".*_cache"))
    (folder / "built").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    for hook in hooks:
        code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", code, folder / "built"],
            cwd=folder / "tree",
            env=kept | environment,
            check=True,
            capture_output=True,
        )
    return folder / "built"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("on_github"), RUNNER, "build_sdist", METADATA)


def metadata_of(folder):
    (path,) = folder.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def test_the_sdist_has_docs_experiments_tests_and_the_weights(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    tracked = {"README.md", "LICENSE", "BUILD", "MODULE.bazel", "CHANGELOG.md", ".ci/run"}
    for folder in ("docs", "experiments", "tests", "seediff_jax"):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        tracked |= {
            file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts
        }
    assert tracked <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_links_and_pictures_on_pypi_are_absolute_and_lead_to_files_of_the_commit(built):
    text = metadata_of(built).get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", README)) > 20
    own = "https://github.com/owner/fork/"
    for target in targets:
        assert target.startswith("https://")
        if target.startswith(own):
            kind, commit, path = target.removeprefix(own).split("/", 2)
            is_picture = path.endswith(".png")
            assert (kind, commit) == ("raw" if is_picture else "blob", RUNNER["GITHUB_SHA"])
            assert (ROOT / path.partition("#")[0]).exists()
    assert sum(target.endswith(".png") for target in targets) == README.count("![")


def test_metadata_names_authors_licence_keywords_and_addresses(built):
    metadata = metadata_of(built)
    assert metadata["Version"] == seediff_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    licences = ["LICENSE", "seediff_jax/assets/stickers/NOTICE"]
    assert metadata.get_all("License-File") == licences
    for name in licences:
        (copy,) = built.glob(f"*.dist-info/licenses/{name}")
        assert copy.read_bytes() == (ROOT / name).read_bytes()
    model = ROOT / "seediff_jax" / "assets" / "stickers"
    assert (model / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert metadata["Author"] == "The seediff_jax authors"
    assert "jax" in metadata["Keywords"].split(",")
    addresses = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert addresses["Repository"] == "https://github.com/owner/fork"
    assert addresses["Paper"] == "https://arxiv.org/abs/2507.19808"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.13"} <= set(
        metadata.get_all("Classifier")
    )


def test_a_build_outside_of_github_invents_no_address(tmp_path):
    metadata = metadata_of(build(tmp_path, {}, METADATA))
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2507.19808"]
    assert metadata.get_payload().strip() == README.strip()


def test_the_workflow_runs_ci_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert {"run": ".ci/run"} in job["steps"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    stated = [
        match[1]
        for line in PROJECT["classifiers"]
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert job["strategy"]["matrix"]["python"] == [stated[0], stated[-1]]
    assert PROJECT["requires-python"] == f">={stated[0]}"


def read_module(text):
    """Parses a MODULE.bazel into the literal arguments of its calls, by the name of the rule."""
    calls = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.Assign(value=ast.Call()):
                continue
            case ast.Expr(value=ast.Call(func=rule, keywords=keywords)):
                arguments = {each.arg: ast.literal_eval(each.value) for each in keywords}
                calls.setdefault(ast.unparse(rule), []).append(arguments)
            case _:
                raise ValueError(f"line {statement.lineno}: MODULE.bazel files only call rules")
    return calls


MODULE = read_module((ROOT / "MODULE.bazel").read_text(encoding="utf-8"))


def test_the_module_of_bazel_has_the_version_the_rules_and_the_hub_that_build_uses():
    assert MODULE["module"] == [{"name": "seediff_jax", "version": seediff_jax.__version__}]
    assert re.findall(r'load\("@(\w+)//', BUILD) == [each["name"] for each in MODULE["bazel_dep"]]
    (hub,) = MODULE["pip.parse"]
    (interpreter,) = MODULE["python.toolchain"]
    assert hub["hub_name"] == "pypi"
    assert hub["python_version"] == interpreter["python_version"]
    assert f">={hub['python_version']}" == PROJECT["requires-python"]


def test_the_lock_of_bazel_has_every_package_that_build_names():
    (hub,) = MODULE["pip.parse"]
    lock = (ROOT / hub["requirements_lock"].removeprefix("//:")).read_text(encoding="utf-8")
    locked = {
        re.sub(r"[-.]", "_", name.lower())
        for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
    }
    assert set(re.findall(r"@pypi//(\w+)", BUILD)) <= locked
