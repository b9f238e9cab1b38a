"""Looks for any head: textures, hair, light, and photographs of the result."""

from geodiff_jax.appearance.lighting import Lighting as Lighting
from geodiff_jax.appearance.lighting import sample_lighting as sample_lighting
from geodiff_jax.appearance.look import Look as Look
from geodiff_jax.appearance.look import sample_look as sample_look
from geodiff_jax.appearance.studio import photograph as photograph
from geodiff_jax.appearance.texture import vertex_colors as vertex_colors
