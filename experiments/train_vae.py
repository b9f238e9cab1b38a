"""Trains the small autoencoder of the generator's latents, on images and normals.

python -m experiments.train_vae --workdir=DIR --data=FOLDER,... \\
    --config=experiments/configs/vae.py:size=tiny

Run the same command again to go on from the last checkpoint, on any mesh. Besides what
`training_run` leaves in the workdir: every --look_every steps the log has the PSNR of
held-out images and normals by averaged weights, and samples/STEP.png shows some beside
what came back of them; at the end there is vae.safetensors, which
`prepare_data --cache_latents` and the generator's commands read.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Key

from experiments import launch, picture_batches, training_run
from experiments.configs import vae as configs
from geodiff_jax import reporting
from geodiff_jax.models import vae, weight_files
from geodiff_jax.training import autoencoding, loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

HELD_OUT, MEASURED = 64, 256
"""Records of each dataset: of the first, what is looked at; of the others, to which
linear codecs are fitted, and over which the latents' deviation is taken."""
SHOWN = 6
"""Records on a sheet."""
FILE = "vae.safetensors"


def main(argv: list[str]) -> None:
    """From flags to a trained autoencoder on disk."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = training_run.given_config()
    workers = training_run.DATA_WORKERS.value
    training_run.command(config, functools.partial(train, config, workers=workers))


def train(
    config: training_run.Config,
    workdir: str,
    data: list[str],
    *,
    plan: loop.Plan,
    mesh: jax.sharding.Mesh,
    workers: int = 0,
) -> states.TrainState:
    """Trains from the workdir's last checkpoint to the plan's end, and writes the file.

    Raises ValueError for what does not fit together, before anything is compiled.
    """
    shapes = jax.eval_shape(
        functools.partial(fresh_state, config=config),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    template = training_run.abstract_state(shapes, mesh)
    placed = jax.tree.map(lambda x: x.sharding, template)
    settings = configs.optimizer_settings(config)
    batches = picture_batches.PictureBatches(
        data,
        image=config.image,
        batch=config.batch,
        seed=config.seed,
        workers=workers,
        **training_run.own_rows(config.batch, mesh),
    )
    look = Look(config, data, workdir)
    state = training_run.train(
        config,
        workdir,
        template=template,
        first=functools.partial(first_state, config, placed, data),
        step=functools.partial(
            autoencoding.train_step,
            module=configs.network(config),
            optimizer=optimizers.make(settings),
            objective=autoencoding.Objective(**config.objective.to_dict()),
            average=settings.average,
            accumulate=settings.accumulate,
        ),
        rate=optimizers.learning_rate(settings),
        batches=batches,
        plan=plan,
        work=loop.Work(images=config.batch, forward_flops=forward_flops(config)),
        mesh=mesh,
        look=look,
    )
    if int(state.step) == plan.steps:
        write(config, state, data, pathlib.Path(workdir) / FILE)
    return state


def fresh_state(key: Key[Array, ""], config: training_run.Config) -> states.TrainState:
    """The state before the first step, of random weights."""
    own, run_key = jax.random.split(key)
    network = configs.network(config)
    side = network.factor
    variables: Any = network.init(own, jnp.zeros((1, side, side, 3)))
    optimizer = optimizers.make(configs.optimizer_settings(config))
    return states.initial_state(run_key, variables, optimizer)


def first_state(
    config: training_run.Config, placed: Any, data: list[str]
) -> states.TrainState:
    """Fresh, each device making its own part; a linear codec is fitted to the data."""
    fresh = functools.partial(fresh_state, config=config)
    state = training_run.made(fresh, placed, seed=config.seed)
    network = configs.network(config)
    if not network.linear:
        return state
    pictures = picture_batches.spread(data, "train", image=config.image, count=MEASURED)
    # Of process 0: other machines may round otherwise.
    fitted = multihost_utils.broadcast_one_to_all(
        vae.principal_squares(network, pictures)
    )

    def started(params: Any) -> Any:
        # Copies: the step gives away the buffers of parameters and average.
        return {**params, **jax.tree.map(np.array, fitted)}

    state = state.replace(params=started(state.params), average=started(state.average))
    return jax.device_put(state, placed)


def forward_flops(config: training_run.Config) -> float:
    """Of one batch, as XLA counts them."""
    network = configs.network(config)
    pixels = jnp.zeros((1, 1, config.image, config.image, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)
    counted: Any = jax.jit(network.apply).lower(shapes, pixels).cost_analysis()
    return 2.0 * config.batch * counted["flops"]


class Look:
    """Held-out pictures as averaged weights give them back: PSNR, and a sheet."""

    def __init__(
        self, config: training_run.Config, data: list[str], workdir: str
    ) -> None:
        self._pictures = picture_batches.spread(
            data, "held_out", image=config.image, count=HELD_OUT
        )
        self._workdir = workdir
        self._reconstruct = jax.jit(
            functools.partial(autoencoding.reconstruct, configs.network(config))
        )

    def __call__(
        self, number: int, state: states.TrainState, log: reporting.Log | None
    ) -> None:
        """Into the log, and into samples/."""
        variables = states.variables_of(state, averaged=True)
        decoded, decibels = zip(
            *(self._reconstruct(variables, one[None]) for one in self._pictures),
            strict=True,
        )
        decoded, decibels = training_run.gathered((decoded, decibels))
        if log is None:
            return
        means = np.concatenate(decibels).mean(axis=0)
        names = [f"held_out/psnr_{name}" for name in autoencoding.DOMAINS]
        log.scalars(number, dict(zip(names, means, strict=True)))
        chosen = np.rint(np.linspace(0, len(decoded) - 1, min(SHOWN, len(decoded))))
        pairs = [(self._pictures[int(i)], decoded[int(i)][0]) for i in chosen]
        training_run.show(log, self._workdir, number, sheet(np.asarray(pairs)))


def sheet(
    pairs: Float[np.ndarray, "n 2 domain y x 3"],
) -> Float[np.ndarray, "h w 3"]:
    """A row for each record: image, what came back of it, normals, what came back."""
    count, _, domains, height, width, _ = pairs.shape
    rows = pairs.transpose(0, 3, 2, 1, 4, 5)
    drawn = rows.reshape(count * height, domains * 2 * width, 3)
    return np.asarray(vae.images_from_pixels(jnp.asarray(drawn)))


def write(
    config: training_run.Config,
    state: states.TrainState,
    data: list[str],
    path: pathlib.Path,
) -> None:
    """The averaged weights, with the scale that gives latents a deviation of 1."""
    network = configs.network(config)
    variables = states.variables_of(state, averaged=True)
    scale = 1.0 / deviation(network, variables, data, image=config.image)
    params = training_run.gathered(variables["params"])
    if jax.process_index() != 0:
        return
    module = network.clone(scale=scale)
    facts = {
        "source": "experiments.train_vae",
        "made_with": reporting.manifest()["versions"]["geodiff_jax"],
        "step": int(state.step),
        "config": config.to_dict(),
        "modules": {"vae": weight_files.describe(module)},
    }
    weight_files.save(path, {"vae": {"params": params}}, metadata=facts)


def deviation(
    network: vae.AutoencoderKL,
    variables: dict[str, Any],
    data: list[str],
    *,
    image: int,
) -> float:
    """Standard deviation of latents before their scale, over training pictures."""
    moments = jax.jit(functools.partial(autoencoding.latent_moments, network))
    pictures = picture_batches.spread(data, "train", image=image, count=MEASURED)
    found = training_run.gathered([moments(variables, x[None]) for x in pictures])
    mean, square = np.mean(found, axis=0, dtype=np.float64)
    return float(np.sqrt(square - mean * mean))


if __name__ == "__main__":
    launch.run(main)
