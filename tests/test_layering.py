"""Who may import whom: the table of folders, no cycles, and BUILD matches the imports."""

import ast
import dataclasses
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "seediff_jax"

BASE = {"array_typing", "attention_maps", "errors", "settings"}
# For each folder: the folders, or single modules, that it may import besides BASE.
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "array_typing": {"errors"},
    "attention_maps": {"array_typing", "errors"},
    "files": set(),
    "schedulers": {"files"},
    "masks": {"files"},
    "prompts": {"files", "masks.config"},
    "models": {"schedulers.config", "prompts.tokenizer"},
    "checkpoints": {"files", "schedulers", "prompts", "models"},
    "sampling": {"schedulers", "masks.config", "prompts", "models"},
    "dataset": {"files", "masks.config", "masks.image_ops"},
    "pipeline": {
        *("schedulers", "masks", "models", "checkpoints", "sampling"),
        *("prompts.names", "prompts.tokenizer", "dataset.pictures", "dataset.strips"),
    },
    "review": {"files", "dataset", "masks.config"},
    "driver": {
        *("files", "schedulers", "masks", "prompts", "models"),
        *("checkpoints", "sampling", "dataset", "pipeline", "review"),
    },
    "demo": {
        *("masks", "prompts", "checkpoints", "sampling", "dataset", "pipeline", "driver"),
    },
}
# Entry points: they parse flags and call, and nothing imports them.
PROGRAMS = {"__main__", "main", "convert", "segment"}
# Modules that read flags or touch JAX's configuration.
FLAG_READERS = {
    *("main.py", "convert.py", "segment.py", "cli.py", "subcommands.py", "presets.py"),
    "arithmetic.py",
}
# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "cv2": "opencv_python_headless",
    "orbax": "orbax_checkpoint",
    "tensorboardX": "tensorboardx",
    "yaml": "pyyaml",
}
# Distributions that are run in processes of their own and not imported.
COMMANDS = {"pytest_xdist", "ruff", "setuptools"}


def imported_names(source):
    """Yields the dotted names that a module imports anywhere; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _python_files(*folders):
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


MODULES = {
    ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__"): file
    for file in _python_files(PACKAGE, "experiments", "tests")
}


@functools.cache
def imports_of(file):
    """Returns what a file imports: our modules, and distributions as "@pypi//name"."""
    found = set()
    for name in imported_names((ROOT / file).read_text(encoding="utf-8")):
        hits = [prefix for prefix in (name, name.rpartition(".")[0]) if prefix in MODULES]
        top = name.partition(".")[0]
        if hits:
            found.add(hits[0])
        elif top not in sys.stdlib_module_names:
            found.add(f"@pypi//{DISTRIBUTIONS.get(top, top)}")
    return frozenset(found - {_module_of(file)})


def _module_of(file):
    return ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module):
    """Returns the folder of the package with a module, or the module itself at the top level."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def forbidden_imports(file, imports):
    """Returns the imports of a file of the package that the table does not allow."""
    folder = folder_of(_module_of(file))
    if folder in PROGRAMS or not folder:
        return set()
    allowed = ALLOWED[folder] | (set() if folder in BASE else BASE)
    inside = {name for name in imports if name.split(".")[0] == PACKAGE}
    return {
        name
        for name in inside
        if folder_of(name) not in {folder, *allowed}
        and name.removeprefix(f"{PACKAGE}.") not in allowed
        and not (name == PACKAGE and folder == "driver")  # for its version
    }


@pytest.mark.parametrize("file", _python_files(PACKAGE))
def test_a_folder_imports_only_what_the_table_allows(file):
    assert forbidden_imports(file, imports_of(file)) == set()


def test_the_table_has_all_folders_and_no_cycle():
    folders = {folder_of(_module_of(file)) for file in _python_files(PACKAGE)} - {""}
    assert folders == set(ALLOWED) | PROGRAMS
    order = {name: {entry.partition(".")[0] for entry in ALLOWED[name]} for name in ALLOWED}
    assert len(list(graphlib.TopologicalSorter(order).static_order())) == len(ALLOWED)


def test_the_import_table_of_docs_equals_this_one():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) ?\|$", page, re.MULTILINE))
    folders = set(ALLOWED) - BASE
    stated = {name: set(filter(None, rows[name].split(", "))) for name in folders}
    stated["driver"] = (
        folders - {"driver", "demo"} if rows["driver"] == "all of the above" else set()
    )
    assert stated == {name: ALLOWED[name] for name in folders}


def test_public_names_equal_those_that_type_checkers_see():
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    import seediff_jax

    assert sorted(seen) == seediff_jax.__all__
    for name, module in seen.items():
        assert getattr(seediff_jax, name) is getattr(sys.modules[module], name)


def test_the_program_of_the_same_name_does_not_replace_a_public_function():
    code = """
import importlib, seediff_jax
program = importlib.import_module("seediff_jax.segment")
from seediff_jax import segment
print(segment is seediff_jax.segment, segment.__module__, callable(program.main))
"""
    assert _run(code).stdout == "True seediff_jax.pipeline.segment_images True\n"


def test_modules_import_one_another_without_a_cycle():
    graph = {_module_of(file): imports_of(file) for file in _python_files(PACKAGE)}
    graph.pop(PACKAGE)  # it resolves its names when they are asked for
    inside = {name: {other for other in graph[name] if other in graph} for name in graph}
    assert len(list(graphlib.TopologicalSorter(inside).static_order())) == len(graph)


def test_an_import_that_the_table_forbids_is_found():
    imports = {"seediff_jax.pipeline.generate", "seediff_jax.masks.seeds", "jax"}
    file = "seediff_jax/masks/expansion.py"
    assert forbidden_imports(file, imports) == {"seediff_jax.pipeline.generate"}
    file = "seediff_jax/sampling/sampler.py"
    assert forbidden_imports(file, imports) == imports - {"jax"}


def test_imports_inside_functions_count():
    source = "def f():\n    from seediff_jax.models import unet\n    import torch.nn\n"
    assert set(imported_names(source)) == {"seediff_jax.models.unet", "torch.nn"}


def test_the_package_has_few_top_level_modules_and_short_files():
    flat = [path.name for path in (ROOT / PACKAGE).glob("*.py")]
    assert len(flat) <= 9, flat
    lengths = {
        file: len((ROOT / file).read_text(encoding="utf-8").splitlines())
        for file in _python_files(PACKAGE, "experiments")
    }
    assert {file: n for file, n in lengths.items() if n > 400} == {}


def test_only_programs_read_flags_or_touch_jax_config():
    for file in _python_files(PACKAGE):
        source = (ROOT / file).read_text(encoding="utf-8")
        names = set(imported_names(source))
        config = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config"
            for node in ast.walk(ast.parse(source))
        )
        reads = config or any(re.match(r"(absl\b.*|argparse|jax\.config)$", name) for name in names)
        assert not reads or Path(file).name in FLAG_READERS, file


def _run(code, *options):
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_package_imports_without_optional_libraries_without_warnings_and_without_defining_flags():
    modules = [_module_of(file) for file in _python_files(PACKAGE)]
    modules.remove(f"{PACKAGE}.demo.page")  # it needs the extra demo
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(["torch", "diffusers", "array_record", "pycocotools"]))
import jax
before = dict(jax.config.values)
for name in {modules}:
    importlib.import_module(name)
assert before == {{name: jax.config.values[name] for name in before}}  # Pallas adds others
from absl import flags
print([name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("{PACKAGE}")])
"""
    result = _run(code, "-W", "error")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("seediff_jax", {"jax", "flax", "numpy"}),
        ("seediff_jax.prompts.class_lists", {"jax", "flax", "numpy"}),
        ("seediff_jax.prompts.prompt_source", {"jax", "flax", "transformers"}),
        ("seediff_jax.masks.expansion", {"flax", "transformers", "orbax", "safetensors"}),
        ("seediff_jax.main", {"torch", "diffusers", "transformers", "tensorboardX"}),
        ("seediff_jax.main", {"jax", "flax", "orbax", "array_record", "pycocotools"}),
        ("seediff_jax.segment", {"jax", "flax", "numpy", "torch", "transformers"}),
        ("seediff_jax.demo.main", {"jax", "gradio", "torch", "diffusers", "transformers"}),
        ("seediff_jax.convert", {"jax", "flax", "torch", "diffusers", "transformers"}),
    ],
)
def test_importing_a_module_loads_no_library_before_it_is_needed(module, unwanted):
    result = _run(f"import sys, {module}; print({unwanted} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr


# BUILD


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule of BUILD, with the full list of its files."""

    rule: str
    name: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]


def _files(node):
    """Evaluates `srcs`: a list of strings, glob([...]), or sums of these."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _files(left) + _files(right)
        case ast.Call(func=ast.Name(id="glob"), args=[patterns], keywords=options):
            excluded = [p for option in options for p in ast.literal_eval(option.value)]
            found, left_out = (
                {path for p in each for path in ROOT.glob(p)}
                for each in (ast.literal_eval(patterns), excluded)
            )
            return sorted(path.relative_to(ROOT).as_posix() for path in found - left_out)
    return ast.literal_eval(node)


def read_build(text):
    """Parses a BUILD file, whose syntax is a subset of Python's, into its libraries by name."""
    targets = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=rule), keywords=keywords)):
                values = {keyword.arg: keyword.value for keyword in keywords}
            case ast.Expr(value=ast.Constant() | ast.ListComp()):
                continue
            case _:
                raise ValueError(f"line {statement.lineno}: BUILD files only call rules")
        if rule not in ("py_library", "py_binary"):
            continue
        name = ast.literal_eval(values["name"])
        if name in targets:
            raise ValueError(f"two targets are called {name!r}")
        deps = tuple(ast.literal_eval(values["deps"])) if "deps" in values else ()
        targets[name] = Target(rule, name, tuple(_files(values["srcs"])), deps)
    return targets


BUILD = (ROOT / "BUILD").read_text(encoding="utf-8")
TARGETS = read_build(BUILD)
LIBRARIES = [target for target in TARGETS.values() if target.rule == "py_library"]
LIBRARY_OF = {file: f":{target.name}" for target in LIBRARIES for file in target.srcs}


def test_each_file_except_tests_is_in_exactly_one_library():
    listed = [file for target in LIBRARIES for file in target.srcs]
    tests = [f for f in _python_files("tests") if Path(f).name.startswith("test_")]
    assert sorted(listed + tests) == _python_files(PACKAGE, "experiments", "tests")


def test_one_comprehension_makes_one_target_per_test_file():
    (rule,) = (
        statement.value
        for statement in ast.parse(BUILD).body
        if isinstance(statement.value, ast.ListComp)
    )
    assert ast.unparse(rule.elt.func) == "py_test"
    assert ast.unparse(rule.generators[0].iter) == "glob(['tests/**/test_*.py'])"


def test_build_is_short():
    assert len(BUILD.splitlines()) < 250


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_deps_of_a_target_equal_the_imports_of_its_files(target):
    imports = {name for file in target.srcs for name in imports_of(file)}
    needed = {LIBRARY_OF.get(MODULES.get(name), name) for name in imports}
    if target.rule == "py_binary":
        needed = {LIBRARY_OF[target.srcs[0]]}
    if target.name == "contracts":  # its public names are imported when they are asked for
        needed = {name for name in needed if name.startswith("@")}
    needed -= {f":{target.name}"}
    if target.name in ("seediff_jax", "experiments"):  # their users depend on the whole package
        assert needed <= _transitive(f":{target.name}")
    else:
        assert sorted(target.deps) == sorted(needed), f"{target.name} needs deps {sorted(needed)}"


def _transitive(label):
    if label.startswith("@"):
        return {label}
    deps = TARGETS[label.removeprefix(":")].deps
    return {label}.union(*(_transitive(dep) for dep in deps))


def test_tests_depend_on_what_they_import():
    tests = [f for f in _python_files("tests") if Path(f).name.startswith("test_")]
    imports = {name for file in tests for name in imports_of(file)}
    needed = {LIBRARY_OF.get(MODULES.get(name), name) for name in imports}
    assert needed <= _transitive(":experiments")


@pytest.mark.parametrize("text", ["x = 1", "def f(): pass"])
def test_build_files_with_more_than_rules_are_refused(text):
    with pytest.raises(ValueError, match="only call rules"):
        read_build(text)


# pyproject.toml


def _distributions(requirements):
    names = (re.match(r"[\w.-]+", requirement)[0] for requirement in requirements)
    return {re.sub(r"[-.]", "_", name.lower()) for name in names}


def _third_party(*folders):
    names = {name for file in _python_files(*folders) for name in imports_of(file)}
    return {name.removeprefix("@pypi//") for name in names if name.startswith("@pypi//")}


def test_declared_dependencies_equal_the_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    runtime, test = _distributions(project["dependencies"]), _distributions(extras["test"])
    formats, page = _distributions(extras["formats"]), _distributions(extras["demo"])
    optional = formats | page | _distributions(extras["tensorboard"])
    assert runtime.isdisjoint(optional)
    assert _third_party(PACKAGE) == runtime | optional
    assert runtime | _distributions(extras["experiments"]) >= _third_party("experiments")
    browser = _distributions(extras["browser"])
    pages = browser | _distributions(extras["docs"])
    assert runtime | test | pages >= _third_party("tests") >= browser - page
    used = _third_party("tests", "experiments")  # tests run the experiments
    assert optional <= test | browser and test - COMMANDS - formats <= used
    assert not _third_party(PACKAGE) & {"torch", "diffusers"}
