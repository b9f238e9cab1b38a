"""The command that trains, with a network that compiles in seconds.

python -m tests.experiments.small_command --workdir=DIR --data=random --config=...
"""

from experiments import launch, train_denoiser
from experiments.configs import generator
from tests.training import meshes

SIZES = {
    "batch": meshes.ITEMS,
    "frames": 2,
    "latents": meshes.SIDE,
    "crop": meshes.CROP,
    "steps": meshes.STEPS,
    # So large that a few steps tell one program from another.
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup": 0,
}
"""Fields of GeoDiff4D's config, as the network wants them."""


def words(*, stage: int = 1) -> list[str]:
    """All that the command needs but a workdir and devices."""
    fields = [f"--config.{name}={value}" for name, value in SIZES.items()]
    config = f"--config=experiments/configs/geodiff4d.py:stage={stage}"
    return [config, *fields, "--data=random", "--log_every=1"]


if __name__ == "__main__":
    generator.network = lambda config: meshes.EveryLayer()
    launch.run(train_denoiser.main)
