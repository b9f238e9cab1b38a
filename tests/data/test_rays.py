"""Rays in numpy are the rays that networks are conditioned on elsewhere."""

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.data import rays
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.render import condition_maps


def random_camera(seed):
    rng = np.random.default_rng(seed)
    pose = jaxlie.SE3.exp(jnp.asarray(rng.normal(size=6), jnp.float32))
    intrinsics = np.array([90.0, 110.0, 31.0, 34.0], np.float32)
    record = {
        "camera_from_world": np.asarray(pose.parameters()),
        "intrinsics": intrinsics,
    }
    return record, Camera(pose, jnp.asarray(intrinsics), 64, 64)


@pytest.mark.parametrize("name", ["ray_map", "plucker_map"])
def test_rays_agree_with_condition_maps(name):
    (own, camera), (other, reference) = random_camera(0), random_camera(1)
    found = getattr(rays, name)(own, other, size=8, pixels=64)
    expected = getattr(condition_maps, name)(camera, reference, size=8)
    # float32 poses of about a metre.
    np.testing.assert_allclose(found, expected, atol=3e-6)
