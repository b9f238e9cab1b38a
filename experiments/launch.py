"""What the commands that train share: flags, processes, meshes, and how they refuse.

One process per host: `--coordinator_address=HOST:PORT --num_processes=N --process_id=I`
joins them, or `--cluster` where the cluster's own variables say the same (SLURM, TPU
pods). All see `--workdir` on one disk. If one is lost the others end too, within
`HEARTBEAT_SECONDS`, and each says so.
"""

import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from geodiff_jax import sharding
from geodiff_jax.training import loop

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py:key=value,...; single fields: --config.field=value."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and logs.")
MESH = flags.DEFINE_string(
    "mesh", None, "data x fsdp x tensor, such as 4x8x1; all devices as fsdp by default."
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if there are many."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, steps to trace to WORKDIR/profile."
)
CLUSTER = flags.DEFINE_bool("cluster", False, "The cluster's variables tell all that.")

HEARTBEAT_SECONDS = 60
"""After so long without a sign of a process the others stop too (ours)."""


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command: exit status 2 and one sentence for bad flags and bad input."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        # Whatever a config file, and setting its fields, may raise.
        except (
            flags.Error,
            AttributeError,
            LookupError,
            OSError,
            TypeError,
            ValueError,
        ) as error:
            refuse(error)
        if len(rest) > 1:
            refuse(f"Expected flags alone, got {' '.join(rest[1:])}.")
        return rest

    def guarded(argv: list[str]) -> None:
        with LastWords() as words:
            try:
                main(argv)
            except (ValueError, OSError) as error:
                refuse(error)
            except jax.errors.JaxRuntimeError:
                if not words.kept:
                    raise
                # It would wait, as it leaves, for the one that is gone.
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

    app.run(guarded, flags_parser=parse)


class LastWords:
    """A sentence that is said on stderr if this process ends inside, however it does.

    It is said by another, small process: where one of many is lost, jax ends the rest
    from C++, with a page that does not say what to do.
    """

    current: "LastWords | None" = None
    """Of this process."""

    def __init__(self) -> None:
        self._teller: subprocess.Popen | None = None

    def __enter__(self) -> "LastWords":
        LastWords.current = self
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        LastWords.current = None
        # Whoever exits on purpose has said why.
        if error is None or isinstance(error, SystemExit):
            self.drop()

    @property
    def kept(self) -> bool:
        """Whether there are any."""
        return self._teller is not None

    def keep(self, sentence: str) -> None:
        """To be said when this process is gone."""
        tell = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
        self._teller = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", tell, sentence],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # Ctrl-C ends all of a terminal's group.
            start_new_session=True,
        )

    def drop(self) -> None:
        """There is nothing to say any more."""
        if self._teller is not None:
            self._teller.communicate(b"-")
            self._teller = None


def refuse(reason: object) -> NoReturn:
    """Ends the process with a sentence."""
    if isinstance(reason, KeyError):  # It prints as the quoted form of its sentence.
        reason = reason.args[0]
    # A config file that raises is told with all its trace, of which the end counts.
    _, _, sentence = str(reason).rpartition("Traceback (most recent call last)")
    if sentence != str(reason):
        sentence = sentence.strip().splitlines()[-1].partition(": ")[2]
    name = pathlib.Path(sys.argv[0]).stem
    print(f"{name}: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(2)


def join_processes() -> None:
    """Makes one program of all processes, before anything asks for devices."""
    given = (COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if not CLUSTER.value and all(value is None for value in given):
        return
    if CLUSTER.value:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    else:
        if any(value is None for value in given):
            raise ValueError(
                "Expected --coordinator_address, --num_processes and --process_id "
                "together, got some of them."
            )
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    if LastWords.current is not None and jax.process_count() > 1:
        own, count = jax.process_index(), jax.process_count()
        LastWords.current.keep(
            f"{pathlib.Path(sys.argv[0]).stem}: Process {own} of 0 to {count - 1} "
            "ended before its time: it failed or was killed, or it missed another of "
            "them (see above); start all again by the same commands, and they go on "
            "from the last checkpoint."
        )


def mesh_shape(text: str) -> tuple[int, int, int]:
    """Of a flag such as 4x8x1. Raises ValueError if it is none."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(
            f"Expected --mesh as data x fsdp x tensor, such as 4x8x1, got {text!r}."
        )
    data, fsdp, tensor = map(int, found.groups())
    return data, fsdp, tensor


def mesh_of_all_devices(text: str | None) -> jax.sharding.Mesh:
    """The mesh that a flag asks for. Raises ValueError if devices do not make it up."""
    shape = (1, jax.device_count(), 1) if text is None else mesh_shape(text)
    return sharding.make_mesh(shape)


def profile(text: str | None, workdir: str) -> loop.Profile | None:
    """The steps that a flag such as 10:12 asks for. Raises ValueError if it is none."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(
            f"Expected --profile_steps as FIRST:LAST, such as 10:12, got {text!r}."
        )
    return loop.Profile(pathlib.Path(workdir) / "profile", first, last)
