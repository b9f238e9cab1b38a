"""What a compiled program gathers, read off its text."""

import math
import re

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("f16", "bf16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
_GATHER = re.compile(r"= (\(.*?\)|\S+) all-gather(?:-done)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def largest_gather(text: str) -> int:
    """Bytes that the largest all-gather results in, a tuple's together; 0 for none."""
    return max(map(_bytes, _GATHER.findall(text)), default=0)


def _bytes(kind: str) -> int:
    return sum(
        BYTES[name] * math.prod(map(int, filter(None, shape.split(","))))
        for name, shape in _ARRAY.findall(kind)
    )
