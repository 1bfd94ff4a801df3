"""Counts the multiplications and additions of a compiled program, from its text.

The compiler's own `cost_analysis` counts the body of a loop once, whatever its length. Here,
sampling loops over UNet calls, attention over heads, and decoding over images.
"""

import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*?)\)(.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class _Instruction(NamedTuple):
    shape: tuple[int, ...]
    operation: str
    operands: list[str]
    attributes: str


def count_flops(program: str) -> int:
    """Counts the FLOPs of all matrix products and convolutions in one run of a program.

    A multiplication and an addition count as two. Taps that fall on padding count, too.

    Args:
        program: `compiled.as_text()`, of a program whose loops have known lengths.

    Raises:
        ValueError: a loop has no known length, or a branch depends on data.
    """
    entry, computations = _parse(program)

    @functools.cache
    def of_computation(name: str) -> int:
        instructions = computations[name]
        return sum(of_instruction(one, instructions) for one in instructions.values())

    def of_instruction(one: _Instruction, computation: dict[str, _Instruction]) -> int:
        if one.operation in ("dot", "convolution"):
            shapes = [computation[name].shape for name in one.operands]
            count = _dot_terms if one.operation == "dot" else _convolution_terms
            return 2 * math.prod(one.shape) * count(*shapes, one.attributes)
        if one.operation == "conditional":
            raise ValueError(f"a branch that depends on data: {one.attributes}")
        trips = 1
        if one.operation == "while":
            known = _TRIPS.search(one.attributes)
            if known is None:
                raise ValueError(f"a loop without a known length: {one.attributes}")
            trips = int(known[1])
        return trips * sum(map(of_computation, _CALLED.findall(one.attributes)))

    return of_computation(entry)


def _parse(program: str) -> tuple[str, dict[str, dict[str, _Instruction]]]:
    """Returns the name of the entry computation, and the named instructions of each computation."""
    entry, computations = "", {}
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            name, kind, operation, operands, attributes = instruction.groups()
            names = re.findall(r"%([\w.-]+)", operands)
            current[name] = _Instruction(_shape(kind), operation, names, attributes)
    return entry, computations


def _shape(kind: str) -> tuple[int, ...]:
    """Reads the axes of a type like "f32[4,8]{1,0}"; () for a scalar or a tuple."""
    axes = re.match(r"\w+\[([\d,]+)\]", kind)
    return tuple(map(int, axes[1].split(","))) if axes else ()


def _dot_terms(left: tuple[int, ...], _: tuple[int, ...], attributes: str) -> int:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)[1]
    return math.prod(left[int(axis)] for axis in summed.split(",") if axis)


def _convolution_terms(_: tuple[int, ...], kernel: tuple[int, ...], attributes: str) -> int:
    labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)[1]
    return math.prod(kernel) // kernel[labels.index("o")]
