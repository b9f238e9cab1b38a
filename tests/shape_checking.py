"""The type checker that runs jaxtyping's shapes while tests run."""

from collections.abc import Callable

import beartype

# As in PEP 484: an int is welcome where a float is expected.
CONFIGURATION = beartype.BeartypeConf(is_pep484_tower=True)


def check(function: Callable) -> Callable:
    """Checks arguments and results of functions, but not the making of pytrees.

    Transformations rebuild pytrees with whatever stands in for arrays (None,
    shapes, axes, labels), so the shapes that fields declare hold only outside them.
    """
    if function.__name__ == "__init__":
        return function
    return beartype.beartype(conf=CONFIGURATION)(function)
