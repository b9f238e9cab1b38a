"""The type checker that runs jaxtyping's shapes while tests run."""

from collections.abc import Callable

import beartype


def check(function: Callable) -> Callable:
    """Checks arguments and results of functions, but not the making of pytrees.

    Transformations rebuild pytrees with whatever stands in for arrays (None,
    shapes, axes, labels), so the shapes that fields declare hold only outside them.
    """
    if function.__name__ == "__init__":
        return function
    return beartype.beartype(function)
