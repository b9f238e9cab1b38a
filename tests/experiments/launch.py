"""The flags of all commands share one register, so tests parse them together."""

import contextlib
import importlib
import types
from collections.abc import Iterator

import grain  # noqa: F401  Its flags are its own, whoever imports it first.
from absl import flags
from absl.testing import flagsaver

_APART: dict[str, list[flags.Flag]] = {}
"""Flags of the commands that were imported apart, by the modules' names."""


def parse_flags() -> None:
    """Gives every required flag a value; tests then set what they need."""
    if not flags.FLAGS.is_parsed():
        required = ("output_dir=unused", "source=procedural", "output=unused")
        known = [x for x in required if x.partition("=")[0] in flags.FLAGS]
        flags.FLAGS(["test", *(f"--{x}" for x in known)])


def import_apart(name: str) -> types.ModuleType:
    """A command whose flags are named like another's; none of them is registered.

    Its functions can be called; `run_apart` calls what reads its flags.
    """
    with _restored():
        module = importlib.import_module(name)
        # A second import of the same registers nothing.
        _APART.setdefault(name, list(_definitions().values()))
    return module


def run_apart(command: types.ModuleType, **values: object) -> None:
    """Calls `main` of a command that was imported apart, with flags of these values."""
    others = _definitions()
    own = {flag.name: flag for flag in _APART[command.__name__]}
    with _restored():
        for name, definition in {**others, **own}.items():
            flags.FLAGS[name] = definition
        parse_flags()
        with flagsaver.flagsaver(**values):
            command.main([])


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Empties the register, and makes it what it was."""
    before = _definitions()
    _empty()
    try:
        yield
    finally:
        _empty()
        for name, definition in before.items():
            flags.FLAGS[name] = definition


def _definitions() -> dict[str, flags.Flag]:
    """A flag stands in the register under its name and under its letter, if any."""
    return {flags.FLAGS[key].name: flags.FLAGS[key] for key in flags.FLAGS}


def _empty() -> None:
    for key in list(flags.FLAGS):
        delattr(flags.FLAGS, key)
