"""The part of a config's name after the colon: key=value, separated by commas."""

from typing import Any


def arguments(text: str, **defaults: Any) -> dict[str, Any]:
    """The values in `text`, each of its default's type; defaults for the rest.

    Raises ValueError in one sentence for unknown keys and for values of another type.
    """
    values = dict(defaults)
    for part in filter(None, text.split(",")):
        key, separator, word = part.partition("=")
        if not separator or key not in defaults:
            raise ValueError(
                f"Expected key=value with a key among {', '.join(sorted(defaults))} "
                f"in the config's arguments, got {part!r}."
            )
        values[key] = _convert(key, word, defaults[key])
    return values


def _convert(key: str, word: str, default: Any) -> Any:
    if isinstance(default, bool):
        if word in ("true", "false"):
            return word == "true"
        raise ValueError(f"Expected true or false for {key}, got {word!r}.")
    try:
        return type(default)(word)
    except ValueError:
        kind = type(default).__name__
        raise ValueError(
            f"Expected a value of type {kind} for {key}, got {word!r}."
        ) from None
