"""Rendering: Gaussian splatting and mesh rasterization, compiled and in jnp."""
