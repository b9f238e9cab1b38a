"""GeoDiff4D's head-pose map tells pose and shape of any head, and nothing it acts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.render import condition_maps
from tests.head import heads

# The rasterizer has tests of its own; its reference twin would compile for minutes.
pytestmark = pytest.mark.usefixtures("kernels")

SIZE = 32
LENS = cameras.look_at(
    jnp.asarray([0.0, 0.0, 0.9]),
    jnp.zeros(3),
    up=jnp.asarray([0.0, 1.0, 0.0]),
    focal=2.0 * SIZE,
    width=SIZE,
    height=SIZE,
)
ACTING = {
    "expression": 0.5,
    "eyelids": 0.8,
    "jaw": [0.25, 0.05, 0.0],
    "eyes": [[0.1, 0.3, 0.0], [-0.1, 0.2, 0.0]],
}


@pytest.fixture(scope="module", params=heads.NAMES)
def drawn(request):
    """(head-pose map, vertices) of faces that act in one way each, or turn."""
    head = heads.load(request.param)
    rest = head_model.neutral(head)
    posed = rest.replace(
        identity=jnp.linspace(-0.5, 0.5, len(head.identity_names)),
        rotation=jnp.asarray([0.1, 0.4, 0.0]),
        neck=jnp.asarray([0.0, 0.2, 0.1]),
    )
    acted = {
        name: jnp.broadcast_to(jnp.asarray(value), getattr(rest, name).shape)
        for name, value in ACTING.items()
    }
    people = {
        "posed": posed,
        **{name: posed.replace(**{name: value}) for name, value in acted.items()},
        "all": posed.replace(**acted),
        "upright": posed.replace(neck=rest.neck),
        "turned": posed.replace(rotation=rest.rotation),
    }

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def draw(head, params):
        pose = condition_maps.head_pose_map(
            head, params, LENS, size=SIZE, supersampling=2
        )
        return pose, head_model.vertices(head, params)

    return {name: jax.device_get(draw(head, params)) for name, params in people.items()}


def test_what_a_face_does_is_not_in_its_head_pose_map(drawn):
    pose, vertices = drawn["posed"]
    assert (np.abs(pose).sum(axis=-1) > 0).mean() > 0.2
    for name in (*ACTING, "all"):
        np.testing.assert_array_equal(drawn[name][0], pose, err_msg=name)
        moved = np.linalg.norm(drawn[name][1] - vertices, axis=-1)
        assert moved.max() > 2e-3, f"{name} did not move the head"


def test_how_a_head_is_held_is_in_its_head_pose_map(drawn):
    for name in ("upright", "turned"):
        assert np.abs(drawn[name][0] - drawn["posed"][0]).max() > 0.1, name
