"""A denoiser of one line that is neither perfect nor linear, and settings for it."""

import dataclasses

MOST_STEPS = 30


def denoise(tanh, x, t):
    """Couples all elements and sees t, so that an error anywhere shows everywhere."""
    return tanh(0.6 * x + 0.3 * x.mean() + t / 1000 - 0.3)


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings as diffusers names the grids; see `make_diffusers_golden`."""

    steps: int
    grid: str = "leading"
    sampler: str = "DDIM"
    prediction: str = "epsilon"
    offset: int = 0
    zero_terminal: bool = False
    ends_clean: bool = True
    eta: float = 0.0


CASES = {
    "stable_diffusion": Case(25, offset=1, ends_clean=False),
    "uneven": Case(30, offset=1),
    "velocity": Case(
        25, grid="trailing", prediction="v", zero_terminal=True, ends_clean=False
    ),
    "signal": Case(10, prediction="x0"),
    "noisy": Case(10, offset=1, prediction="v", eta=0.7, ends_clean=False),
    "linspace": Case(12, grid="linspace"),
    "multistep": Case(10, grid="trailing", sampler="2M"),
    "multistep_velocity": Case(20, grid="trailing", sampler="2M", prediction="v"),
}
