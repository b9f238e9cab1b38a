"""Guider: maps at the pixels' resolution to what a denoiser adds (Learn2Control, 3.3).

What it reads are the splatted features of `render.splatted_features`, which learn with
it through the denoising loss.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from geodiff_jax.models import layers


class Guider(nn.Module):
    """Convolutions that bring maps to the latents' resolution; it starts as nothing.

    The paper takes the pose guidance network of RealisDance (Zhou et al. 2024), whose
    trunk is ControlNet's embedding of conditions (Zhang et al. 2023). With maps of one
    kind its gate has nothing to choose and is left out. It is ours to add the result to
    the UNet's first features alone.
    """

    features: int = 320
    """Channels of the UNet's first features."""
    widths: tuple[int, ...] = (16, 32, 96, 256)
    """Channels at each resolution from the pixels' on; each next one is half."""
    dtype: DTypeLike = jnp.float32
    """Of activations; parameters and the result are float32."""

    @property
    def factor(self) -> int:
        """How many pixels of the maps a latent has along each side."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(self, maps: Float[Array, "*b h w c"]) -> Float[Array, "*b hh ww d"]:
        """Zeros at the start of training, as the last layer is.

        Raises:
          ValueError: height or width that `factor` does not divide.
        """
        height, width = maps.shape[-3:-1]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Expected maps with sides in multiples of {self.factor} pixels, got "
                f"{height} x {width}; draw them at the size of the images."
            )
        dtype = self.dtype
        x = nn.silu(layers.conv(self.widths[0], dtype=dtype, name="conv_in")(maps))
        for level, features in enumerate(self.widths[1:]):
            same = layers.conv(x.shape[-1], dtype=dtype, name=f"level{level}")
            x = nn.silu(same(x))
            halve = nn.Conv(
                features, (3, 3), 2, padding=1, dtype=dtype, name=f"halve{level}"
            )
            x = nn.silu(halve(x))
        out = layers.conv(self.features, dtype=dtype, zero=True, name="conv_out")
        return out(x).astype(jnp.float32)
