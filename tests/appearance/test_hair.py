"""Hair: it grows where hair grows, repeats, and rides on the head."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

from geodiff_jax.appearance import hair, surface
from geodiff_jax.head import model as head_model


def test_strands_repeat_for_a_look(head, look, locks):
    again = hair.grow(head, look)
    for first, second in zip(
        jax.tree.leaves(locks), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_strands_have_one_count_for_every_look(head, look, locks):
    bald = hair.grow(
        head, look.replace(hair_length=jnp.array(0.0), beard=jnp.array(0.0))
    )
    assert bald.points.shape == locks.points.shape
    bearers = hair.SCALP_STRANDS + hair.BEARD_STRANDS
    assert float(bald.width[:bearers].max()) == 0.0


def test_hair_grows_on_the_scalp_and_stays_outside_the_head(head, locks):
    points = np.asarray(hair.pose(locks, head.template, head.faces))
    worn = np.asarray(locks.width[: hair.SCALP_STRANDS]) > 0
    scalp = np.asarray(head.template)[np.asarray(head.regions["scalp"])]
    roots = points[: hair.SCALP_STRANDS, 0][worn]
    gap = np.linalg.norm(roots[:, None] - scalp[None, ::3], axis=-1).min(axis=1)
    assert np.quantile(gap, 0.99) < 0.02
    anatomy = surface.anatomy(head)
    for eye in anatomy.eyes:  # No strand stands before an eye.
        strands = points[: hair.SCALP_STRANDS][worn].reshape(-1, 3)
        ahead = strands[strands[:, 2] > eye.centre[2]]
        assert np.all(np.linalg.norm(ahead[:, :2] - eye.centre[:2], axis=1) > 0.008)


def test_hair_follows_a_rigid_head(head, locks):
    pose = jaxlie.SE3.from_rotation_and_translation(
        jaxlie.SO3.exp(jnp.asarray([0.3, -0.7, 0.2])), jnp.asarray([0.1, 0.2, -0.3])
    )
    rotation = pose.rotation().as_matrix()

    def carry(points):
        return points @ rotation.T + pose.translation()

    rest = hair.pose(locks, head.template, head.faces)
    moved = hair.pose(locks, carry(head.template), head.faces)
    # Millimetre triangles give their frames in float32 to about 1e-4.
    np.testing.assert_allclose(moved, carry(rest), atol=5e-5)


def test_upper_lashes_come_down_with_the_lids(head, locks):
    closed = head_model.neutral(head).replace(eyelids=jnp.ones(2))
    rest = hair.pose(locks, head.template, head.faces)
    shut = hair.pose(locks, head_model.head_vertices(head, closed), head.faces)
    start = hair.SCALP_STRANDS + hair.BEARD_STRANDS
    upper = slice(start + 10, start + (2 * hair.LASHES) // 3 - 10)
    assert float((shut - rest)[upper, 0, 1].mean()) < -0.003


def test_ribbons_face_the_viewer_and_stay_as_wide_as_told():
    t = jnp.linspace(0.0, 0.1, hair.POINTS)
    strand = jnp.stack([t, 0 * t, 0 * t], axis=-1)[None]
    corners = hair.ribbons(strand, jnp.asarray([0.002]), jnp.asarray([0.0, 0.0, 1.0]))
    assert corners.shape == (2 * hair.POINTS, 3)
    np.testing.assert_allclose(corners[:, 2], 0.0, atol=1e-9)
    width = jnp.abs(corners[1::2, 1] - corners[::2, 1])
    assert 0.001 < float(width.max()) <= 0.0021 and float(width[-1]) < 0.0005
    faces = hair.ribbon_faces(1, hair.POINTS)
    assert faces.shape == (2 * (hair.POINTS - 1), 3) and faces.max() == len(corners) - 1


def test_an_identity_wears_its_own_hair(head, look, locks):
    identity = jnp.zeros(len(head.identity_names)).at[0].set(2.0)
    grown = hair.grow(head, look, identity=identity)
    params = head_model.neutral(head).replace(identity=identity)
    points = hair.pose(grown, head_model.head_vertices(head, params), head.faces)
    assert bool(jnp.all(jnp.isfinite(points)))
    np.testing.assert_array_equal(grown.roots.faces, locks.roots.faces)
