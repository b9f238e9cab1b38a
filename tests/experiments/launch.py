"""The flags of all commands share one register, so tests parse them together."""

import importlib
import types

from absl import flags


def parse_flags() -> None:
    """Gives every required flag a value; tests then set what they need."""
    if not flags.FLAGS.is_parsed():
        required = ("output_dir=unused", "source=procedural", "output=unused")
        known = [x for x in required if x.partition("=")[0] in flags.FLAGS]
        flags.FLAGS(["test", *(f"--{x}" for x in known)])


def import_apart(name: str) -> types.ModuleType:
    """A command whose flags are named like another's; none of them is registered.

    Its functions can be called; what reads its flags needs a process of its own.
    """
    register = flags.FLAGS
    # A flag stands there under its name and under its letter, if it has one.
    before = {definition.name: definition for definition in _emptied(register)}
    try:
        return importlib.import_module(name)
    finally:
        _emptied(register)
        for flag, definition in before.items():
            register[flag] = definition


def _emptied(register: flags.FlagValues) -> list[flags.Flag]:
    """What was registered."""
    definitions = {flag: register[flag] for flag in register}
    for flag in definitions:
        delattr(register, flag)
    return list(definitions.values())
