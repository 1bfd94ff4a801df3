"""Which implementation computes attention: by platform, precision, head width and length.

    Layer, Place -> obstacle of each candidate, in the platform's order -> the first without one

    xla    every platform: what XLA makes of the definition; on a CPU one head at a time
    flash  TPU: one Pallas kernel that keeps the logits in on-chip memory, `tpu_attention`
    cudnn  NVIDIA GPU: cuDNN's fused attention

Loads no JAX, so that the command line can list the choices at once.
"""

from typing import NamedTuple

from seediff_jax.errors import UserError

ATTENTION = ("auto", "xla", "flash", "cudnn")
"""Values of the setting `attention`; "auto" takes the first candidate that serves and pays."""

_CANDIDATES = {"tpu": ("flash", "xla"), "cuda": ("cudnn", "xla")}

FLASH_QUERIES = 1024
"""Fewest queries for which "auto" takes flash: the logits of fewer stay in on-chip memory by
themselves, those of 1024 locations and 77 tokens do not."""

_MIB = 2**20
_SMALL_VMEM = 16 * _MIB
VMEM = {"TPU v5 lite": 128 * _MIB, "TPU v6 lite": 128 * _MIB, "TPU v5": 64 * _MIB}
"""Kind of TPU -> bytes of on-chip memory of a core; other kinds are taken to have 16 MiB, as v4."""

# Share of on-chip memory that blocks may use, and the compiler's limit as a multiple of their size.
_USABLE_VMEM, _VMEM_SLACK = 0.85, 1.25
_QUERY_BLOCKS = (4096, 2048, 1024, 512, 256, 128)
# Most logits of a block of more than 512 queries: enough to hide the cost of starting a block.
_BLOCK_LOGITS = 2**21


class Layer(NamedTuple):
    """A call of attention.

    Attributes:
        dtype: name of the dtype of queries, keys and values.
        heads: number of heads.
        head_width: numbers per head.
        queries: n, number of queries.
        keys: m, number of keys.
        is_recorded: whether the head sum of the probabilities is returned as well.
        is_added: whether it is added to an earlier one.
    """

    dtype: str
    heads: int
    head_width: int
    queries: int
    keys: int
    is_recorded: bool = False
    is_added: bool = False


class Place(NamedTuple):
    """The device that attention is compiled for.

    Attributes:
        platform: "cpu", "tpu", "cuda" or another name of JAX.
        kind: JAX's `device_kind`; "" where it is not known.
        compute_capability: of an NVIDIA GPU whose cuDNN is at hand, as (9, 0); None if there is
            none.
        is_split: whether the compiler splits arrays over several devices, which it cannot do with
            a kernel.
    """

    platform: str
    kind: str = ""
    compute_capability: tuple[int, int] | None = None
    is_split: bool = False


class Blocks(NamedTuple):
    """How the flash kernel walks a layer.

    Attributes:
        queries: number of queries at a time.
        all_heads: whether keys and values of all heads stay in on-chip memory while heads are
            summed; otherwise they are read again for every block of queries.
        vmem_limit: bytes of on-chip memory that the compiler may use.
        adds: whether the kernel itself adds to an earlier head sum, in place.
    """

    queries: int
    all_heads: bool
    vmem_limit: int
    adds: bool = False


def flash_blocks(layer: Layer, place: Place) -> Blocks | None:
    """Finds the largest blocks of queries that fit into on-chip memory; None if none fits."""
    vmem = VMEM.get(place.kind, _SMALL_VMEM)
    # Padding columns would have to be cut off the sum, which could not be updated in place.
    may_add = layer.is_added and layer.keys % 128 == 0
    for adds in (True, False) if may_add else (False,):
        for all_heads in (True, False) if layer.is_recorded else (False,):
            for queries in _QUERY_BLOCKS:
                rows = min(queries, layer.queries)
                if rows > 512 and rows * layer.keys > _BLOCK_LOGITS:
                    continue
                taken = _flash_vmem(layer, rows, all_heads, adds)
                if taken <= _USABLE_VMEM * vmem:
                    limit = min(vmem, max(_SMALL_VMEM, int(_VMEM_SLACK * taken)))
                    return Blocks(rows, all_heads, limit, adds)
    return None


def _flash_vmem(layer: Layer, queries: int, all_heads: bool, adds: bool) -> int:
    itemsize = 4 if layer.dtype == "float32" else 2
    rows, keys = _rounded(queries, 128), _rounded(layer.keys, 128)
    width = _rounded(layer.head_width, 16) * itemsize
    # Blocks are double-buffered: one is computed while the next is copied.
    moved = 2 * 2 * rows * width + 2 * 2 * keys * width * (layer.heads if all_heads else 1)
    summed = 2 * 4 * rows * keys * (layer.is_recorded + adds)
    # Logits, weights and probabilities, and these once more in the dtype of the values.
    return moved + summed + rows * keys * (3 * 4 + itemsize)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def choose(layer: Layer, place: Place, choice: str = "auto") -> str:
    """Chooses the implementation of a layer: "xla", "flash" or "cudnn".

    Args:
        layer: the call.
        place: the device.
        choice: one of ATTENTION. If "cudnn" is forced, recorded layers still use XLA, because cuDNN
            does not return probabilities.

    Raises:
        UserError: the forced implementation cannot be used; the message says why.
    """
    if choice not in ATTENTION:
        raise UserError(f"attention={choice!r} is not one of {', '.join(ATTENTION)}")
    if choice == "auto":
        candidates = _CANDIDATES.get(place.platform, ("xla",))
        return next(name for name in candidates if _serves(name, layer, place))
    reason = _obstacle(choice, layer, place)
    if reason is None:
        return "xla" if choice == "cudnn" and layer.is_recorded else choice
    raise UserError(f"attention={choice} cannot be used: {reason}; use attention=auto or xla")


def _serves(name: str, layer: Layer, place: Place) -> bool:
    is_short = name == "flash" and layer.queries < FLASH_QUERIES
    is_refused = name == "cudnn" and layer.is_recorded
    return not is_short and not is_refused and _obstacle(name, layer, place) is None


def _obstacle(name: str, layer: Layer, place: Place) -> str | None:
    """Says why an implementation cannot compute a layer; None if it can."""
    if name == "flash":
        return _flash_obstacle(layer, place)
    return _cudnn_obstacle(layer, place) if name == "cudnn" else None


def _flash_obstacle(layer: Layer, place: Place) -> str | None:
    if place.platform != "tpu":
        return f"it needs a TPU, the devices are of platform {place.platform}"
    if layer.dtype not in ("bfloat16", "float32"):
        return f"it needs bfloat16 or float32, the networks run in {layer.dtype}"
    if place.is_split:
        return "it cannot be split over the model axis of the mesh"
    if flash_blocks(layer, place) is None:
        mib = VMEM.get(place.kind, _SMALL_VMEM) // _MIB
        return (
            f"{layer.keys} keys of head width {layer.head_width} do not fit into the {mib} MiB of "
            f"on-chip memory of {place.kind or 'this TPU'}"
        )
    return None


def _cudnn_obstacle(layer: Layer, place: Place) -> str | None:
    if place.platform != "cuda" or place.compute_capability is None:
        return f"it needs an NVIDIA GPU with cuDNN, the devices are of platform {place.platform}"
    if layer.dtype not in ("bfloat16", "float16"):
        return f"it needs bfloat16 or float16, the networks run in {layer.dtype}"
    if place.compute_capability < (8, 0):
        return f"it needs compute capability 8.0, the GPU has {_dotted(place.compute_capability)}"
    widest = 256 if place.compute_capability >= (9, 0) else 128
    if layer.head_width % 8 or layer.head_width > widest:
        return (
            f"it needs head widths that are multiples of 8 up to {widest} on this GPU, a layer has "
            f"{layer.head_width}"
        )
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
