"""The flags of all commands share one register, so tests parse them together."""

from absl import flags


def parse_flags() -> None:
    """Gives every required flag a value; tests then set what they need."""
    if not flags.FLAGS.is_parsed():
        required = ("output_dir=unused", "source=procedural", "output=unused")
        known = [x for x in required if x.partition("=")[0] in flags.FLAGS]
        flags.FLAGS(["test", *(f"--{x}" for x in known)])
