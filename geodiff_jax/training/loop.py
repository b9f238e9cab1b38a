"""The loop that trains: batches in, checkpoints and a log out, on any mesh.

It survives being killed at any moment: what it does at a step depends on the state and
on that step's batch alone, and both come back with the last checkpoint. Nothing in it
waits for the device but at log intervals, and for a step long since given.
"""

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from geodiff_jax import checkpoint, reporting, sharding
from geodiff_jax.training import state as states

Figures = dict[str, Array]
Step = Callable[[states.TrainState, Any], tuple[states.TrainState, Figures, Figures]]
"""State and batch to the next state, what is averaged over steps, and what is not."""

Look = Callable[[int, states.TrainState, reporting.Log | None], None]
"""Step and state to whatever one wants to see of it; all processes call it together,
and process 0 alone has a log."""

RUN_AHEAD = 2
"""Steps that the host is ahead of the device, each of which holds a batch there."""

PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense products in bfloat16 per second and device, by its kind: the makers' data
sheets. Others have no MFU."""


@runtime_checkable
class Batches(Protocol):
    """Where batches come from: this process' rows of each, as numpy arrays."""

    replaced: int
    """Unreadable examples in place of which others were read, by this process."""

    def __next__(self) -> Any:
        """The next batch."""
        ...

    def get_state(self) -> Any:
        """What `set_state` needs to go on from here, as JSON knows it."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes on from there."""
        ...


@dataclasses.dataclass(frozen=True)
class Profile:
    """Steps that are traced, by their numbers in the log, for TensorBoard or XProf."""

    folder: pathlib.Path
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, and how often something is kept. All are ours."""

    steps: int
    log_every: int = 50
    save_every: int = 1000
    look_every: int = 1000
    most_failing: int = 20
    """Steps in a row without a finite gradient after which there is no hope."""
    profile: Profile | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does, for the log's rates."""

    images: int
    """Frames of all views in a batch; all domains of one count once."""
    forward_flops: float
    """Of the batch. A step counts as three times as many: what remat adds is no gain,
    and what resting parameters save is not taken off."""


def make_step(
    train_step: Callable[..., tuple[states.TrainState, Figures]],
    *,
    learning_rate: optax.Schedule,
    placed: Any,
    mesh: sharding.Mesh,
) -> Step:
    """`train_step(key, state, batch)` as one program; it gives the old state away.

    `placed` are the shardings of the state.
    """

    def step(
        state: states.TrainState, batch: Any
    ) -> tuple[states.TrainState, Figures, Figures]:
        new, figures = train_step(states.step_key(state), state, batch)
        counters = {
            "learning_rate": learning_rate(state.step - state.skipped),
            "skipped": new.skipped,
            "failing": new.failing,
        }
        return new, figures, counters

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(placed, NamedSharding(mesh, sharding.BATCH)),
        out_shardings=(placed, everywhere, everywhere),
        donate_argnums=0,
    )


def resume(
    series: checkpoint.Series, template: Any, batches: Batches
) -> states.TrainState | None:
    """The state of the newest checkpoint, with the batches where they were then.

    `template` is a state's ShapeDtypeStructs with shardings. None if there is none.
    Raises ValueError if it was saved by another configuration, or by another number of
    processes that were not all at the same batch.
    """
    found = series.restore(template)
    if found is None:
        return None
    if len(found.own) == jax.process_count():
        batches.set_state(found.own[jax.process_index()])
    elif all(own == found.own[0] for own in found.own):
        batches.set_state(found.own[0])
    else:
        raise ValueError(
            f"Expected {len(found.own)} processes, as in the checkpoint of step "
            f"{found.step}, got {jax.process_count()}; each had data of its own."
        )
    return found.tree


def run(
    step: Step,
    state: states.TrainState,
    batches: Batches,
    *,
    plan: Plan,
    work: Work,
    mesh: jax.sharding.Mesh,
    log: reporting.Log | None,
    series: checkpoint.Series,
    metadata: Mapping[str, Any] | None = None,
    look: Look | None = None,
) -> states.TrainState:
    """The state after the plan's last step, or after SIGTERM; both are saved.

    `log` is for process 0 alone. `look` must leave the state as it is. Raises
    FloatingPointError after too many steps without a finite gradient.
    """
    number = start = int(state.step)
    meter = _Meter(work, devices=mesh.size)
    with (
        _termination() as asked,
        _progress(plan.steps - start) as advance,
        _tracing(plan.profile) as traced,
    ):
        while number < plan.steps:
            with traced(number + 1) as results:
                with meter.waiting():
                    batch = next(batches)
                placed = sharding.place_batch(batch, mesh)
                state, figures, counters = step(state, placed)
                results.append(figures)
            meter.add(figures, first=number == start)
            number += 1
            advance()
            last = asked(number) or number == plan.steps
            if last or number % plan.log_every == 0:
                values = meter.read() | jax.device_get(counters)
                values["replaced"] = batches.replaced
                if log is not None:
                    log.scalars(number, values)
                _check_finite(number, int(values["failing"]), plan.most_failing)
            # Before the save: a run that goes on from there has been looked at.
            done = number == plan.steps
            if look is not None and (done or number % plan.look_every == 0):
                with meter.stopped():
                    look(number, state, log)
            if last or number % plan.save_every == 0:
                series.save(number, state, metadata=metadata, own=batches.get_state())
            if last:
                break
    series.wait()
    return state


def _progress(steps: int) -> contextlib.AbstractContextManager[reporting.Advance]:
    """Told by one process."""
    if jax.process_index() == 0:
        return reporting.progress("Training", steps)
    return contextlib.nullcontext(lambda: None)


@contextlib.contextmanager
def _tracing(
    profile: Profile | None,
) -> Iterator[Callable[[int], contextlib.AbstractContextManager[list]]]:
    """Yields what goes around each step; by one process, as all do the same."""
    running = False

    @contextlib.contextmanager
    def around(number: int) -> Iterator[list]:
        nonlocal running
        results: list[Figures] = []
        wanted = profile is not None and profile.first <= number <= profile.last
        if not wanted or jax.process_index() > 0:
            yield results
            return
        if not running:
            jax.profiler.start_trace(profile.folder)
            running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield results
        if number == profile.last:
            # The device is behind; what it does then belongs to these steps too.
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            running = False

    try:
        yield around
    finally:
        if running:
            jax.profiler.stop_trace()


class _Meter:
    """Figures between two lines of the log."""

    def __init__(self, work: Work, *, devices: int) -> None:
        self._work, self._devices = work, devices
        self._peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
        self._pending: list[Figures] = []
        self._begin()

    def _begin(self) -> None:
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Around what is no part of training."""
        jax.block_until_ready(self._pending)
        since = time.monotonic()
        yield
        self._since += time.monotonic() - since

    def add(self, figures: Figures, *, first: bool) -> None:
        """One step's; the first has compiled, so its time says nothing."""
        self._pending.append(figures)
        self._steps += 1
        if first:
            jax.block_until_ready(figures)
            self._begin()
        elif len(self._pending) > RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - RUN_AHEAD])

    def read(self) -> dict[str, float]:
        """Means since the last reading, of what is a number, and rates."""
        read = jax.device_get(self._pending)
        means = {}
        for name in read[0]:
            values = np.asarray([figures[name] for figures in read], np.float64)
            if np.isfinite(values).any():
                means[name] = values[np.isfinite(values)].mean()
        rates = self._rates() if self._steps else {}
        self._pending = []
        self._begin()
        return means | rates | {"memory_mb": _memory_mb()}

    def _rates(self) -> dict[str, float]:
        seconds = time.monotonic() - self._since
        per_second = self._steps / seconds
        flops = 3.0 * self._work.forward_flops * per_second
        rates = {
            "steps_per_s": per_second,
            "images_per_s": self._work.images * per_second,
            "tflops_per_s": flops / 1e12,
            "data_wait_share": self._waited / seconds,
        }
        if self._peak is not None:
            rates["mfu"] = flops / (self._peak * self._devices)
        return rates


def _memory_mb() -> float:
    """The most that a device has held, or on CPUs this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 1e6
    return reporting.peak_memory_mb()


def _check_finite(number: int, failing: int, most: int) -> None:
    if failing >= most:
        raise FloatingPointError(
            f"Expected finite gradients, got none in the last {failing} steps up to "
            f"{number}; lower the learning rate, or look at the data."
        )


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[int], bool]]:
    """Yields whether to end after a step: someone sent SIGTERM to any process."""
    if jax.process_count() > 1:
        # All end after the same step, some while after the first was told; a handler
        # of ours would take the signal from jax, which tells the others.
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(
        signal.SIGTERM, lambda number, frame: received.append(number)
    )
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
