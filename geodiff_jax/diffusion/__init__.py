"""Diffusion as pure mathematics over a callable `denoise(x, t)`; knows no network."""
