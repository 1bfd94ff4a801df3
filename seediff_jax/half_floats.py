"""float16 to float32 and back, bit for bit as NumPy's casts and several times faster.

NumPy casts these one number at a time; here whole arrays go through integer instructions.

    float32   sign, 8 bits of exponent + 127, 23 bits of fraction
    float16   sign, 5 bits of exponent + 15, 10 bits of fraction; exponent 0: fraction * 2 ** -24
"""

import numpy as np

_SHIFT = 13  # from one fraction to the other
_REBIAS = 127 - 15
_SIGN_AND_SIZE = np.int32(-0x70002000)  # 0x8fffe000: of a float16 that was moved by _SHIFT
_SIZE_16, _INFINITY_16 = np.int16(0x7FFF), 0x7C00
_SIZE_32, _NORMAL_32 = np.uint32(0x7FFFFFFF), np.uint32((_REBIAS + 1) << 23)
_OVERFLOW_32 = np.float32(65520).view(np.uint32)  # from here on numbers are rounded to infinity
_HALF, _HALF_BITS = np.float32(0.5), np.float32(0.5).view(np.uint32)
# Adds what rounds up in the last bit that stays, and takes the exponents' difference off.
_ROUND_UP = np.uint32((0x0FFF - (_REBIAS << 23)) % 2**32)
_SUBNORMAL = np.float32(2.0**-149)


def widen(array: np.ndarray) -> np.ndarray:
    """A float16 array in float32, exactly."""
    bits = array.view(np.int16)
    # Some libraries make a thread take subnormal numbers for 0; the product below would be wrong.
    flushes = _SUBNORMAL * np.float32(2) == 0
    if flushes or (bits & _SIZE_16).max(initial=0) >= _INFINITY_16:
        return array.astype(np.float32)
    wide = bits.astype(np.int32)
    wide <<= _SHIFT
    wide &= _SIGN_AND_SIZE
    result = wide.view(np.float32)
    result *= np.float32(2.0**_REBIAS)
    return result


def narrow(array: np.ndarray) -> np.ndarray:
    """A float32 array in float16, rounded to nearest, ties to even; infinity from 65520 on."""
    bits = array.view(np.uint32)
    size = bits & _SIZE_32
    if size.max(initial=0) >= _OVERFLOW_32:
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    # One half has a last bit of 2 ** -24, as subnormal float16: the sum is rounded to these.
    small = (size.view(np.float32) + _HALF).view(np.uint32)
    small -= _HALF_BITS
    is_small = size < _NORMAL_32
    odd = size >> _SHIFT
    odd &= 1
    size += odd
    size += _ROUND_UP
    size >>= _SHIFT
    np.copyto(size, small, where=is_small)
    sign = bits >> 16
    sign &= 0x8000
    size |= sign
    return size.astype(np.uint16).view(np.float16)
