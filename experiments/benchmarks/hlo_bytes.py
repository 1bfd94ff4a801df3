"""Sums the bytes that a compiled program moves, by part of the UNet.

An instruction moves its operands and its results, once each. Those that move nothing by themselves
are left out, and so are loops: a UNet call has none on a TPU.
"""

import collections
import math
import re

PARTS = {
    "feed-forward": ("ff/",),
    "self-attention, kernels": ("attn1/.*pallas_call",),
    "self-attention, projections and copies": ("attn1/",),
    "cross-attention": ("attn2/",),
    "convolutions": ("/conv", "samplers", "time_emb"),
    "projections of transformers": ("proj_in", "proj_out"),
    "norms": ("norm",),
}
"""Name of a part -> patterns of JAX's names of its operations; the first match counts."""

_SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*?)\)(.*)$", re.MULTILINE)


def bytes_by_part(program: str) -> dict[str, int]:
    """Returns the bytes of each of PARTS and of all "other", of `compiled.as_text()`."""
    entry = re.search(r"^ENTRY .*?^}", program, re.MULTILINE | re.DOTALL)[0]
    kinds, moved = {}, collections.Counter()
    for name, kind, operation, operands, attributes in _INSTRUCTION.findall(entry):
        kinds[name] = kind
        # An asynchronous copy counts once, at its start.
        if operation in _FREE or operation.endswith("-done"):
            continue
        read = re.findall(r"%([\w.-]+)", operands)
        total = _bytes(kind) + sum(_bytes(kinds.get(operand, "")) for operand in read)
        moved[_part(re.search(r'op_name="([^"]*)"', attributes))] += total
    return dict(moved)


def _part(name: re.Match[str] | None) -> str:
    found = (
        part
        for part, patterns in PARTS.items()
        if name and any(re.search(pattern, name[1]) for pattern in patterns)
    )
    return next(found, "other")


def _bytes(kind: str) -> int:
    """The bytes of a type like "(bf16[8,4]{1,0}, f32[])"."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return sum(
        _SIZES.get(dtype, 1) * math.prod(int(axis) for axis in axes.split(",") if axis)
        for dtype, axes in arrays
    )
