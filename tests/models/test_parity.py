"""Networks at full size beside live diffusers: what `make parity` runs."""

import jax
import numpy as np
import pytest

from geodiff_jax.models import pretrained


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd15_unet", "sd21_unet"])
def test_full_size_unet_agrees_with_diffusers(layout):
    pytest.importorskip("diffusers")
    from tests.models import make_sd_goldens as theirs

    widths = (320, 640, 1280, 1280)
    model = theirs.network(layout, widths=widths, blocks=2, options=theirs.FULL)
    latents, t, context = theirs.signals(layout, side=8, options=theirs.FULL)
    expected = theirs.predict(model, latents, t, context)
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    module, variables = pretrained.build(layout, tensors)
    del tensors, model  # They are gigabytes.
    with jax.default_matmul_precision("highest"):
        found, _ = jax.jit(module.apply)(
            variables,
            latents[:, None, None, None],
            t[:, None, None, None],
            context=context[:, None, None, None],
        )
    np.testing.assert_allclose(found[:, 0, 0, 0], expected, atol=2e-5)
