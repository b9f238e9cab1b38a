"""Weights on their way into a file of ours: complete, with their provenance."""

import hashlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from geodiff_jax.models import names_unet, names_vae, unet, vae, weight_files, weights
from tests.models import named_tensors

UNET = unet.UNet(
    channels=32, multipliers=(1, 2), blocks=1, tokens=(unet.IMAGE, ()), heads=(8, 8)
)
VAE = vae.AutoencoderKL(channels=32, multipliers=(1, 2), blocks=1)


def shapes():
    """Of both modules' variables."""
    x = jnp.zeros((1, 1, 1, 1, 4, 4, 4))
    context = jnp.zeros((1, 1, 1, 1, 1, 16))
    own = weights.template(UNET, x, jnp.zeros(()), context=context)
    return {"unet": own, "vae": weights.template(VAE, jnp.zeros((1, 8, 8, 3)))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion in diffusers' layout; half of it in half precision."""
    path, own = tmp_path_factory.mktemp("sd15"), shapes()
    tables = {
        "unet": names_unet.diffusers_table(UNET),
        "vae": names_vae.vae_table(VAE, names_vae.DIFFUSERS),
    }
    for name, table in tables.items():
        tensors = named_tensors.checkpoint(table, own[name])
        if name == "vae":
            tensors = {key: x.astype(np.float16) for key, x in tensors.items()}
        (path / name).mkdir()
        file = path / name / "diffusion_pytorch_model.safetensors"
        safetensors.numpy.save_file(tensors, file)
    return path


def convert(folder, output, *more, source="sd15"):
    command = [sys.executable, "-m", "experiments.convert_weights"]
    command.append(f"--source={source}")
    return subprocess.run(
        [*command, f"--path={folder}", f"--output={output}", *more],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_checkpoint_becomes_a_file(folder, tmp_path):
    output = tmp_path / "sd15.safetensors"
    done = convert(folder, output)
    assert done.returncode == 0, done.stderr
    parts, facts = weight_files.load_modules(output)
    assert {name: module for name, (module, _) in parts.items()} == {
        "unet": UNET,
        "vae": VAE,
    }
    variables = {name: own for name, (_, own) in parts.items()}
    weight_files.check(variables, shapes())
    assert facts["source"] == "sd15" and "RAIL" in facts["licence"]
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    told = facts["modules"]["unet"]
    assert told["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    # A tensor in its place, turned from [out, in] to [in, out].
    name, path = "time_embedding.linear_1.weight", ("time1", "kernel")
    stored = safetensors.numpy.load_file(file)[name]
    ours = variables["unet"]["params"][path[0]][path[1]]
    np.testing.assert_array_equal(ours, stored.T)


def test_what_does_not_fit_is_named(folder, tmp_path):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    other = tmp_path / "sd15"
    for name in ("unet", "vae"):
        (other / name).mkdir(parents=True)
    target = other / "unet" / file.name
    safetensors.numpy.save_file(tensors | {"ema.decay": np.zeros(1)}, target)
    (other / "vae" / file.name).write_bytes((folder / "vae" / file.name).read_bytes())
    output = tmp_path / "out.safetensors"
    refused = convert(other, output)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "1 unused: ema.decay" in refused.stderr and not output.exists()
    assert convert(other, output, "--unused=ema.").returncode == 0


def test_cap4ds_checkpoint_keeps_the_positions_that_it_encodes(tmp_path):
    """Its heads are 64 wide, which no name and no shape tells."""
    net = UNET.clone(channels=64, heads=(1, 2), cross_attention=False, maps=True)
    x, maps = jnp.zeros((1, 1, 1, 1, 4, 4, 4)), jnp.zeros((1, 1, 1, 1, 4, 4, 50))
    own = weights.template(net, x, jnp.zeros(()), maps=maps)
    parts = {"unet": (net, own), "vae": (VAE, shapes()["vae"])}
    positions = np.random.default_rng(0).random((9, 3), np.float32)
    rest = {"cond_stage_model.renderer.props": positions, "logvar": np.zeros(4)}
    path, output = tmp_path / "cap4d.safetensors", tmp_path / "out.safetensors"
    safetensors.numpy.save_file(named_tensors.cap4d(parts) | rest, path)
    done = convert(path, output, source="cap4d")
    assert done.returncode == 0, done.stderr
    found, facts = weight_files.load_modules(output)
    assert {name: module for name, (module, _) in found.items()} == {
        "unet": net.clone(middle_tokens=("view", "h", "w")),
        "vae": VAE,
    }
    stored = np.float32(facts["modules"]["unet"]["positions"])
    np.testing.assert_array_equal(stored, positions)
