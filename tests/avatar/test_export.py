"""Avatars survive the disk, and others can read their splats."""

import json

import jax
import numpy as np
import plyfile
import pytest

from geodiff_jax.avatar import export
from geodiff_jax.avatar import model as avatar_model
from tests.avatar import toy_avatar


def test_an_avatar_survives_the_disk(tmp_path):
    avatar = toy_avatar.load()
    export.save(tmp_path / "avatar", avatar, provenance={"notice": "synthetic media"})
    again = export.load(tmp_path / "avatar")
    assert jax.tree.structure(again) == jax.tree.structure(avatar)
    for before, after in zip(
        jax.tree.leaves(avatar), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_a_damaged_avatar_is_refused_in_one_sentence(tmp_path):
    export.save(tmp_path / "avatar", toy_avatar.load())
    largest = max((tmp_path / "avatar").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    with pytest.raises(ValueError, match="remove the folder"):
        export.load(tmp_path / "avatar")


def test_the_ply_holds_the_posed_gaussians_and_their_provenance(tmp_path):
    avatar = toy_avatar.load()
    path = tmp_path / "avatar.ply"
    export.write_ply(path, avatar, provenance={"notice": "synthetic media"})
    data = plyfile.PlyData.read(path)
    assert "notice: synthetic media" in data.comments
    world = avatar_model.pose(avatar, avatar.params)
    vertex = data["vertex"]
    np.testing.assert_allclose(vertex["y"], world.means[:, 1], rtol=1e-6)
    np.testing.assert_allclose(vertex["scale_0"], world.log_scales[:, 0], rtol=1e-6)
    # Upright in 3DGS viewers, whose y points down: the crown has the smallest y.
    scalp = np.asarray(avatar.head.regions["scalp"])[avatar.head.faces].all(1)
    on_scalp = scalp[np.asarray(avatar.binding.face)]
    assert vertex["y"][on_scalp].min() < vertex["y"][~on_scalp].min()
    json.dumps(data.comments)
