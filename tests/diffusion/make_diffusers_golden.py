"""Writes diffusers.npz: grids and trajectories of diffusers' schedulers on a toy.

The toy's formula is in `tests/diffusion/toy.py`, in any array library. Needs torch and
diffusers: `python -m tests.diffusion.make_diffusers_golden` in the repository's root.
"""

import pathlib

import diffusers
import numpy as np
import torch

from tests.diffusion import toy

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def settings(case: toy.Case) -> dict:
    return {
        **BETAS,
        "prediction_type": {"x0": "sample", "v": "v_prediction"}.get(
            case.prediction, "epsilon"
        ),
        "timestep_spacing": case.grid,
        "steps_offset": case.offset,
        "rescale_betas_zero_snr": case.zero_terminal,
    }


def ddim(case: toy.Case, start: np.ndarray, noises: np.ndarray) -> dict:
    scheduler = diffusers.DDIMScheduler(
        **settings(case), clip_sample=False, set_alpha_to_one=case.ends_clean
    )
    scheduler.set_timesteps(case.steps)
    x, path = torch.from_numpy(start), [start]
    for t, noise in zip(scheduler.timesteps, noises, strict=False):
        x = scheduler.step(
            toy.denoise(torch.tanh, x, t),
            t,
            x,
            eta=case.eta,
            variance_noise=torch.from_numpy(noise) if case.eta else None,
        ).prev_sample
        path.append(x.numpy())
    return {"times": scheduler.timesteps.numpy(), "trajectory": np.stack(path)}


def multistep(case: toy.Case, start: np.ndarray) -> dict:
    scheduler = diffusers.DPMSolverMultistepScheduler(**settings(case))
    scheduler.set_timesteps(case.steps)
    x, path = torch.from_numpy(start), [start]
    for t in scheduler.timesteps:
        x = scheduler.step(toy.denoise(torch.tanh, x, t), t, x).prev_sample
        path.append(x.numpy())
    return {"times": scheduler.timesteps.numpy(), "trajectory": np.stack(path)}


def main():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((2, 3, 4)).astype(np.float32)
    noises = rng.standard_normal((toy.MOST_STEPS, 2, 3, 4)).astype(np.float32)
    arrays = {"start": start, "noises": noises}
    for name, case in toy.CASES.items():
        multi = case.sampler == "2M"
        made = multistep(case, start) if multi else ddim(case, start, noises)
        arrays |= {f"{name}_{key}": value for key, value in made.items()}
    np.savez_compressed(
        pathlib.Path(__file__).with_name("diffusers.npz"),
        version=diffusers.__version__,
        **arrays,
    )


if __name__ == "__main__":
    main()
