"""Rendered heads: picture, normals, maps and labels of one scene, time and again."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.data import building, procedural_heads, schema
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.render import condition_maps
from tests.data import balls

PLAN = dataclasses.replace(procedural_heads.PLANS["toy"], views=3)


def test_cameras_spread_round_the_face_and_look_at_it():
    views = procedural_heads.sample_views(jax.random.key(0), 4, spread=90.0, size=64)
    middle = jnp.asarray([procedural_heads.MIDDLE])
    yaws = []
    for view in views:
        pixel, depth = view.project(middle)
        np.testing.assert_allclose(pixel, [[32.0, 32.0]], atol=1e-3)
        assert 0.9 <= float(depth[0]) / procedural_heads.DISTANCE <= 1.1
        offset = np.asarray(view.position - middle[0])
        yaws.append(np.degrees(np.arctan2(offset[0], offset[2])))
        assert -15.0 <= np.degrees(np.arcsin(offset[1] / depth[0])) <= 20.0
    for number, yaw in enumerate(yaws):
        assert 22.5 * (number - 2) <= yaw <= 22.5 * (number - 1)


def test_motion_is_one_persons_and_smooth():
    head = procedural.load()
    identity = jnp.ones(len(head.identity_names))
    plan = dataclasses.replace(procedural_heads.PLANS["paper"], frames=17)
    motion = procedural_heads.sample_motion(jax.random.key(1), head, identity, plan)
    assert all((frame.identity == identity).all() for frame in motion)
    whole = np.stack([frame.expression for frame in motion])
    # Four frames from stop to stop, where it rests.
    for start in range(0, 16, procedural_heads.PACE):
        leg = whole[start : start + procedural_heads.PACE + 1]
        reach = np.abs(leg[-1] - leg[0]).max()
        assert reach > 0.2
        # Smooth steps are at most 1.5 times as fast as even ones, and slow at stops.
        steps = np.abs(np.diff(leg, axis=0))
        assert steps.max() <= 1.51 * reach / (len(leg) - 1)
        assert max(steps[0].max(), steps[-1].max()) < 0.2 * reach
    turned = np.linalg.norm([frame.rotation for frame in motion], axis=-1)
    assert np.degrees(turned.max()) < 25


@pytest.mark.parametrize(
    ("name", "open_jaws", "at_work"), [("paper", 0.745, 12.5), ("tiny", 1.0, 2.9)]
)
def test_faces_act_and_talk(name, open_jaws, at_work):
    """How often a jaw is open (0.6 + 0.4 x 12 / 33; always), and muscles at work."""
    head, plan = procedural.load(), procedural_heads.PLANS[name]
    keys = jax.random.split(jax.random.key(2), 200)
    drawn = np.stack([procedural_heads._expression(key, head, plan) for key in keys])
    jaw = drawn[:, head.expression_names.index("jawOpen")] > 0
    pairs = [not name.endswith("_R") for name in head.expression_names]
    working = (drawn[:, pairs] > 0).sum(axis=1)
    for seen, mean in ((jaw, open_jaws), (working, at_work)):
        # Four standard errors.
        assert abs(seen.mean() - mean) <= 4 * seen.std() / np.sqrt(len(seen))
    assert drawn.min() >= 0.0 and drawn.max() <= 1.0


def test_subjects_are_held_out():
    for plan in procedural_heads.PLANS.values():
        parts = plan.parts()
        assert len(parts["train"]) + len(parts["held_out"]) == plan.subjects
        assert parts["held_out"] and not set(parts["train"]) & set(parts["held_out"])


def test_heads_that_leave_the_picture_are_skipped():
    head = procedural.load()
    params = head_model.neutral(head).replace(translation=jnp.asarray([0.5, 0, 0]))
    example = dataclasses.replace(
        balls.example(),
        params=jax.tree.map(np.asarray, params),
        camera_from_world=np.array([0.0, 1, 0, 0, 0, 0, 1.0], np.float32),
    )
    admitted = procedural_heads._admit(example, balls.SIZES, head)
    assert isinstance(admitted, building.Skipped)
    assert admitted.name == example.name and "of the head" in admitted.reason


@pytest.fixture(scope="module")
def rendered():
    return list(procedural_heads.examples("person00000", PLAN))


@pytest.mark.slow
def test_renders_are_examples_of_the_schema(rendered):
    head = procedural.load()
    labels = {(x.subject, x.clip, x.frame, x.view) for x in rendered}
    assert len(labels) == PLAN.clips * PLAN.frames * PLAN.views
    for example in rendered:
        schema.check(example, PLAN.sizes, head)


@pytest.mark.slow
def test_renders_repeat(rendered):
    again = procedural_heads.examples("person00000", PLAN)
    for one, other in zip(rendered[:2], again, strict=False):
        first, second = schema.encode(one), schema.encode(other)
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.slow
def test_normals_are_those_of_the_skin_that_shows(rendered):
    """Against the head's own normals, drawn without hair, on the middle of the face."""
    head = procedural.load()
    for example in rendered:
        pose = jaxlie.SE3(jnp.asarray(example.camera_from_world))
        camera = Camera(pose, jnp.asarray(example.intrinsics), 64, 64)
        params = jax.tree.map(jnp.asarray, example.params)
        vertices = head_model.vertices(head, params)
        fragments = condition_maps.rasterize(vertices, head.faces, camera)
        bare = condition_maps.normal_map(fragments, vertices, head.faces, camera)
        face = head_model.face_region(head, "nose", "lips")
        on_face = np.asarray(fragments.face >= 0) & face[np.asarray(fragments.face)]
        cosine = np.sum(np.asarray(bare) * example.normal, axis=-1)[on_face]
        # Means over four samples against one in their middle.
        assert on_face.sum() > 20 and np.median(cosine) > 0.97


@pytest.mark.slow
def test_maps_lie_where_the_picture_has_the_head(rendered):
    for example in rendered:
        covered = shares(example.mask, 8)
        drawn = np.linalg.norm(example.maps["head_pose"], axis=-1)
        # Hair stands over the head, and expression moves little.
        assert np.all(covered[drawn > 0.9] > 0.9)
        left, top, right, bottom = example.face_box
        rows, columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        assert example.mask[rows, columns].mean() > 0.6


def shares(mask, size):
    factor = len(mask) // size
    return mask.reshape(size, factor, size, factor).mean(axis=(1, 3))
