"""3D Gaussians: what they are, how they ride on triangles, and their file format."""

from geodiff_jax.gaussians.binding import Binding as Binding
from geodiff_jax.gaussians.model import Gaussians as Gaussians
