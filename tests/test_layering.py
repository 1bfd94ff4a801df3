"""BUILD states the layers and their reading order; imports and dependencies are held to it."""

import ast
import dataclasses
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "seediff_jax"
LAYERS = ("arrays", "prompts", "models", "model", "masks", "pipeline", "driver")
RULES = ("py_library", "py_binary", "py_test")
# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "cv2": "opencv_python_headless",
    "orbax": "orbax_checkpoint",
    "tensorboardX": "tensorboardx",
    "yaml": "pyyaml",
}
# What the user runs, and what these have in common.
PROGRAMS = {"commands.py", "convert.py", "main.py"}
# Distributions that are run, not imported.
COMMANDS = {"pytest_xdist", "ruff"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule of BUILD; `srcs` are files in the order in which they are written."""

    rule: str
    name: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]


def _files(node):
    """Evaluates `srcs`: a list of strings, glob([...]), or sums of these."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _files(left) + _files(right)
        case ast.Call(func=ast.Name(id="glob"), args=[patterns]):
            found = {path for p in ast.literal_eval(patterns) for path in ROOT.glob(p)}
            return sorted(path.relative_to(ROOT).as_posix() for path in found)
    return ast.literal_eval(node)


def read_build(text):
    """Parses a BUILD file, whose syntax is a subset of Python's, into targets by name."""
    targets = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Expr(value=ast.Call(func=ast.Name(id=rule), keywords=keywords)):
                values = {keyword.arg: keyword.value for keyword in keywords}
            case _:
                raise ValueError(f"line {statement.lineno}: BUILD files only call rules")
        if rule not in RULES:
            continue
        name = ast.literal_eval(values["name"])
        if name in targets:
            raise ValueError(f"two targets are called {name!r}")
        deps = tuple(ast.literal_eval(values["deps"])) if "deps" in values else ()
        targets[name] = Target(rule, name, tuple(_files(values["srcs"])), deps)
    return targets


def imported_names(source):
    """Dotted names that a module imports anywhere in it; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(order, imports):
    """Pairs (file, file that it imports) where the second does not stand before the first."""
    place = {file: k for k, file in enumerate(order)}
    return [
        (file, other) for file in order for other in imports[file] if place[other] >= place[file]
    ]


TARGETS = read_build((ROOT / "BUILD").read_text())
ORDER = [file for layer in LAYERS for file in TARGETS[layer].srcs]
LIBRARY_OF = {
    file: f":{target.name}"
    for target in TARGETS.values()
    if target.rule == "py_library"
    for file in target.srcs
}


def _all_files(*folders):
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def _module_names():
    """File of every module of the repository, by the name under which it is imported."""
    names = {}
    for file in _all_files(PACKAGE, "experiments", "tests"):
        path = Path(file).with_suffix("")
        inside = path.parts[-1:] if path.parts[0] == "tests" else path.parts
        names[".".join(inside).removesuffix(".__init__")] = file
    return names


MODULES = _module_names()


@functools.cache
def imports_of(file):
    """What a file imports: files of the repository, and distributions as "@pypi//name"."""
    found = set()
    for name in imported_names((ROOT / file).read_text()):
        prefixes = [name, name.rpartition(".")[0]]
        hits = [MODULES[prefix] for prefix in prefixes if prefix in MODULES]
        top = name.partition(".")[0]
        if hits:
            found.add(hits[0])
        elif top not in sys.stdlib_module_names:
            found.add(f"@pypi//{DISTRIBUTIONS.get(top, top)}")
    return frozenset(found)


def _inside(files):
    """Imports of several files, less the files themselves."""
    return {name for file in files for name in imports_of(file)} - set(files)


def _distributions(requirements):
    names = (re.match(r"[\w.-]+", requirement)[0] for requirement in requirements)
    return {re.sub(r"[-.]", "_", name.lower()) for name in names}


def _third_party(*folders):
    names = _inside(_all_files(*folders))
    return {name.removeprefix("@pypi//") for name in names if name.startswith("@pypi//")}


def test_every_module_is_in_exactly_one_library():
    libraries = [target for target in TARGETS.values() if target.rule == "py_library"]
    listed = [file for target in libraries for file in target.srcs]
    tests = [file for file in _all_files("tests") if Path(file).name.startswith("test_")]
    assert sorted(listed + tests) == _all_files(PACKAGE, "experiments", "tests")


def test_every_test_file_has_a_test_of_its_name():
    tests = [target for target in TARGETS.values() if target.rule == "py_test"]
    named = {target.name: target.srcs[0] for target in tests}
    files = [file for file in _all_files("tests") if Path(file).name.startswith("test_")]
    assert named == {Path(file).stem: file for file in files}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_deps_of_a_target_are_what_its_files_import(target):
    needed = {LIBRARY_OF.get(name, name) for name in _inside(target.srcs)}
    if target.rule == "py_test":
        needed.add(":testing")
    if target.rule == "py_binary":
        needed = {LIBRARY_OF[target.srcs[0]]}
    needed -= {f":{target.name}"}
    if target.name == "experiments":  # scripts that come and go, and may use all of the package
        assert needed <= set(target.deps)
    else:
        assert sorted(target.deps) == sorted(needed), f"{target.name} needs deps {sorted(needed)}"


def test_a_file_imports_only_what_stands_above_it():
    inside = {
        file: {name for name in imports_of(file) if not name.startswith("@pypi//")}
        for file in ORDER
    }
    assert sorted(ORDER) == _all_files(PACKAGE)
    assert upward_imports(ORDER, inside) == []


def test_masks_import_the_lowest_layer_only():
    assert [dep for dep in TARGETS["masks"].deps if dep.startswith(":")] == [":arrays"]


def test_only_programs_read_flags_or_touch_jax_config():
    for file in ORDER:
        source = (ROOT / file).read_text()
        names = set(imported_names(source))
        config = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config"
            for node in ast.walk(ast.parse(source))
        )
        reads = config or any(re.match(r"(absl\b.*|argparse|jax\.config)$", name) for name in names)
        assert reads == (Path(file).name in PROGRAMS), file


def test_package_imports_without_optional_libraries_without_warnings_and_without_defining_flags():
    modules = [file.removesuffix(".py").replace("/", ".") for file in ORDER]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "array_record", "pycocotools"]))
import jax
before = dict(jax.config.values)
for name in {modules}:
    importlib.import_module(name.removesuffix(".__init__"))
assert dict(jax.config.values) == before
from absl import flags
print([name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("{PACKAGE}")])
"""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_the_driver_loads_no_library_before_it_is_needed():
    lazy = {"torch", "diffusers", "transformers", "tensorboardX", "array_record", "pycocotools"}
    code = f"import sys, seediff_jax.main, seediff_jax.convert; print({lazy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_declared_dependencies_are_those_that_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtime, test = _distributions(project["dependencies"]), _distributions(extras["test"])
    formats = _distributions(extras["formats"])
    assert runtime.isdisjoint(formats)
    assert formats <= _third_party(PACKAGE) <= runtime | formats
    assert runtime <= _third_party(PACKAGE, "experiments")
    assert runtime | _distributions(extras["experiments"]) >= _third_party("experiments")
    assert runtime | test >= _third_party("tests")
    assert formats <= test and test - COMMANDS - formats <= _third_party("tests")
    assert not _third_party(PACKAGE) & {"torch", "diffusers"}


def test_an_upward_import_a_cycle_and_an_import_of_itself_are_found():
    imports = {"a": {"b"}, "b": {"a"}, "c": {"a", "b"}, "d": {"d"}}
    assert upward_imports("abcd", imports) == [("a", "b"), ("d", "d")]


def test_imports_inside_functions_count():
    source = "def f():\n    from seediff_jax.models import unet\n    import torch.nn\n"
    assert set(imported_names(source)) == {"seediff_jax.models.unet", "torch.nn"}


@pytest.mark.parametrize("text", ["x = 1", "def f(): pass", "[py_test(name = n) for n in 'ab']"])
def test_build_files_with_more_than_rules_are_refused(text):
    with pytest.raises(ValueError, match="only call rules"):
        read_build(text)
