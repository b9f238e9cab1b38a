"""The benchmark of control: it sees what a network looks at, and how sure that is."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import random_batches
from experiments.configs import cap4d, generator, geodiff4d
from tests.experiments import launch

control = launch.import_apart("experiments.benchmarks.control")


def batches_of(config, *, items=3):
    """Two of them."""
    config.batch = items
    batches = random_batches.RandomBatches(generator.batch_shapes(config))
    return [jax.tree.map(jnp.asarray, next(batches)) for _ in range(2)]


@pytest.mark.parametrize("seen", [(), ("driving",), ("head_pose",)])
def test_loss_changes_with_what_a_network_looks_at(seen, monkeypatch):
    def apply(variables, noisy, t, signals, *, driving, **_):
        looked = {"driving": driving, "head_pose": signals.head_pose}
        means = [looked[name].mean((-3, -2, -1)) for name in seen]
        # Random crops and maps have nearly the same mean.
        add = 10.0 * sum(means, jnp.zeros((3, 1, 1)))
        return noisy + add.reshape(3, 1, 1, 1, 1, 1, 1), {}

    network = types.SimpleNamespace(apply=apply)
    monkeypatch.setattr(generator, "network", lambda config: network)
    config = geodiff4d.get_config()
    own, *others = control.losses(
        jax.random.key(0), {"params": {}}, *batches_of(config), config=config
    )
    changed = [bool(abs(other - own) > 1e-5) for other in others]
    looks = "driving" in seen
    assert changed == [looks, looks, "head_pose" in seen]


def test_what_nothing_drives_is_refused():
    config = cap4d.get_config()
    with pytest.raises(ValueError, match=r"geodiff4d\.py"):
        control.losses(jax.random.key(0), {}, *batches_of(config), config=config)


def test_a_person_alone_is_refused():
    config = geodiff4d.get_config()
    alone = batches_of(config, items=1)
    with pytest.raises(ValueError, match="several people"):
        control.losses(jax.random.key(0), {}, *alone, config=config)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random, held = np.random.default_rng(0), 0
    for _ in range(100):
        base = random.normal(1.0, 0.2, 48)
        raised = 1.1 * base + random.normal(0.0, 0.1, 48)
        losses = np.stack([base, raised, base, base], axis=1)
        own, other, *_ = control.rows(losses)
        assert own.keys() == {"driven by", "loss"}
        held += other["low"] < 10.0 < other["high"]
    assert 88 <= held <= 99
