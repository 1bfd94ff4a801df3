"""Makes damaged and hostile JSON texts and tensors, and checks how they are refused.

A refusal is a ValueError. Another exception, a warning, a hang or much memory fails the test. The
few examples of the default run are always the same; the thousands of `-m slow` are random.
"""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW_OR_THOUSANDS = pytest.mark.parametrize(
    "examples", ["few", pytest.param("thousands", marks=pytest.mark.slow)]
)
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
MOST_MEMORY = 2**24  # bytes; the files have thousands

INTEGERS = st.sampled_from(
    [0, 1, -1, 2, 3, 4, 8, 32, 2**16, 2**31, 2**32, 2**63, 2**64, 10**12, -(10**9), 10**400]
)
FLOATS = st.sampled_from(
    [0.0, -0.0, 0.5, 1e-400, 5e-324, 1e308, -1.0, float("nan"), float("inf"), -float("inf")]
)
TEXTS = st.sampled_from(["", "a", "F32", "BF16", "I64", "U9", "\0", "\ud800", "é" * 50, "../../x"])
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
DEEP = st.sampled_from([30, 100, 990, 5000])


def places(value, path=()):
    """Yields the paths of everything in a JSON value, the value itself first."""
    yield path
    children = enumerate(value) if isinstance(value, list) else ()
    for key, child in value.items() if isinstance(value, dict) else children:
        yield from places(child, (*path, key))


@st.composite
def edited(draw, value):
    """Draws a JSON value with one to three places changed, deleted, doubled or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        # Short paths first: an option is changed more often than the fourth digit of a list.
        path = draw(st.sampled_from(sorted(places(value), key=len)[:200]))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
            key = draw(TEXTS)
            if isinstance(value, dict):
                value[key] = draw(VALUES)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "number", "drop", "wrap", "double"])):
            case "replace":
                parent[path[-1]] = draw(VALUES)
            case "number":
                parent[path[-1]] = draw(INTEGERS | FLOATS)
            case "drop":
                del parent[path[-1]]
            case "wrap":
                parent[path[-1]] = [parent[path[-1]]]
            case "double" if isinstance(parent[path[-1]], list):
                parent[path[-1]] = parent[path[-1]] * 2
    return value


@st.composite
def texts(draw, value):
    """Draws the bytes of an edited JSON value, which may be damaged too."""
    text = json.dumps(draw(edited(value)))
    match draw(st.sampled_from(["none"] * 7 + ["cut", "deep", "bytes", "twice"])):
        case "cut":
            text = text[: draw(st.integers(0, len(text)))]
        case "deep":
            depth = draw(DEEP)
            text = text.replace("[", "[" * depth, 1).replace("]", "]" * depth, 1)
        case "bytes":
            at = draw(st.integers(0, len(text)))
            return text[:at].encode() + draw(st.binary(max_size=4)) + text[at:].encode()
        case "twice":
            text = text.replace("{", '{"shape": 3, ', 1)
    return text.encode("utf-8", "surrogatepass")


def cast(array, dtype):
    """Casts an array; infinity and NaN may become any number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


@st.composite
def changed(draw, tensors):
    """Draws tensors; up to three are deleted, renamed, doubled, reshaped or changed."""
    tensors = dict(tensors)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        match draw(st.sampled_from(["drop", "rename", "double", "shape", "dtype", "values"])):
            case "rename":
                tensors[draw(TEXTS.filter(str.isprintable)) + name[draw(st.integers(0, 9)) :]] = (
                    tensor
                )
            case "double":
                tensors |= {
                    name: tensor,
                    name.replace("lora_unet_", "unet."): np.asarray(tensor + 1),
                }
            case "shape":
                shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 24]), max_size=4))
                tensors[name] = np.zeros(shape, tensor.dtype)
            case "dtype":
                dtype = draw(
                    st.sampled_from([np.float64, np.float16, np.int64, np.uint8, np.bool_])
                )
                tensors[name] = cast(tensor, dtype)
            case "values":
                tensors[name] = np.full(tensor.shape, cast(np.float64(draw(FLOATS)), tensor.dtype))
    return tensors


def try_all(check, strategy, examples, few=300, thousands=5000):
    """Calls `check` with as many examples of a strategy as the test's `examples` says."""
    if examples == "few":
        profile = settings(max_examples=few, derandomize=True, **COMMON)
    else:
        profile = settings(max_examples=thousands, **COMMON)

    @profile
    @given(strategy)
    def each(example):
        check(example)

    each()


def require_refusal(call, name):
    """Returns the result of a call, or None if it was refused with the name of the file."""
    tracemalloc.start()
    try:
        return call()
    except ValueError as error:
        assert str(name) in str(error), f"{error!r} does not name {name}"
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY
