"""Files that viewers open, and nothing else is read."""

import jax.numpy as jnp
import numpy as np
import plyfile
import pytest

from geodiff_jax.gaussians import model, ply


def random_gaussians(k: int, n: int = 20) -> model.Gaussians:
    rng = np.random.default_rng(k)
    arrays = {
        "means": (n, 3),
        "quaternions": (n, 4),
        "log_scales": (n, 3),
        "opacity_logits": (n,),
        "sh": (n, k, 3),
    }
    drawn = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in arrays.items()
    }
    return model.Gaussians(**drawn, alive=jnp.arange(n) % 4 != 0)


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_read_inverts_write(tmp_path, k):
    gaussians = random_gaussians(k)
    ply.write_ply(tmp_path / "a.ply", gaussians, comments=["synthetic media", "b: c"])
    found, comments = ply.read_ply(tmp_path / "a.ply")
    assert comments == ["synthetic media", "b: c"] and found.alive.all()
    for name in ("means", "quaternions", "log_scales", "opacity_logits", "sh"):
        written = np.asarray(getattr(gaussians, name))[np.asarray(gaussians.alive)]
        np.testing.assert_array_equal(getattr(found, name), written)


def test_an_independent_reader_finds_the_layout_of_3dgs(tmp_path):
    gaussians = random_gaussians(16)
    ply.write_ply(tmp_path / "a.ply", gaussians, comments=["hello there"])
    data = plyfile.PlyData.read(str(tmp_path / "a.ply"))
    vertex, alive = data["vertex"], np.asarray(gaussians.alive)
    names = [p.name for p in vertex.properties]
    assert names[:9] == "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert (
        names[54:] == "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    )
    assert data.byte_order == "<" and data.comments == ["hello there"]
    np.testing.assert_array_equal(vertex["y"], gaussians.means[alive, 1])
    np.testing.assert_array_equal(vertex["f_dc_2"], gaussians.sh[alive, 0, 2])
    # Channel by channel: 15 reds, then 15 greens, then 15 blues.
    np.testing.assert_array_equal(vertex["f_rest_17"], gaussians.sh[alive, 3, 1])
    np.testing.assert_array_equal(vertex["scale_2"], gaussians.log_scales[alive, 2])
    np.testing.assert_array_equal(vertex["rot_0"], gaussians.quaternions[alive, 0])
    np.testing.assert_array_equal(vertex["nz"], 0.0)


def test_reads_what_others_write(tmp_path):
    names = "x y z opacity rot_0 rot_1 rot_2 rot_3 f_dc_0 f_dc_1 f_dc_2".split()
    names += "scale_0 scale_1 scale_2 extra".split()
    table = np.zeros(3, [(name, "<f4") for name in names])
    for i, name in enumerate(names):
        table[name] = i
    element = plyfile.PlyElement.describe(table, "vertex")
    plyfile.PlyData([element], byte_order="<").write(str(tmp_path / "a.ply"))
    found, _ = ply.read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(found.means[0], [0, 1, 2])
    np.testing.assert_array_equal(found.quaternions[0], [4, 5, 6, 7])
    assert found.sh.shape == (3, 1, 3)


def test_broken_gaussians_are_refused(tmp_path):
    gaussians = random_gaussians(1)
    gaussians = gaussians.replace(means=gaussians.means.at[1, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="1 with nan"):
        ply.write_ply(tmp_path / "a.ply", gaussians)
    ply.write_ply(
        tmp_path / "a.ply", gaussians.replace(alive=gaussians.alive.at[1].set(False))
    )


def test_comments_cannot_forge_a_header(tmp_path):
    with pytest.raises(ValueError, match="one printable ASCII line"):
        ply.write_ply(
            tmp_path / "a.ply", random_gaussians(1), comments=["a\nelement face 1"]
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: b"", "binary little endian"),
        (lambda c: b"PNG" + c, "binary little endian"),
        (lambda c: c.replace(b"binary_little", b"binary_big"), "binary little endian"),
        (lambda c: c[:-5], "cut short"),
        (lambda c: c + b"x", "cut short"),
        (lambda c: c.replace(b"vertex 15", b"vertex 16"), "cut short"),
        (lambda c: c.replace(b"vertex 15", b"vertex -1"), "got 'element vertex -1'"),
        (lambda c: c.replace(b"float rot_3", b"float rot_9"), "without rot_3"),
        (lambda c: c.replace(b"float rot_3", b"float rot_2"), "named numbers"),
        (lambda c: c.replace(b"float x", b"list uchar int x"), "one list of vertices"),
        (
            lambda c: c.replace(b"end_header\n", b"element face 3\nend_header\n"),
            "face 3",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, damage, message):
    ply.write_ply(tmp_path / "a.ply", random_gaussians(4))
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(damage(content))
    with pytest.raises(ValueError, match=message):
        ply.read_ply(tmp_path / "a.ply")
