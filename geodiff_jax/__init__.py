"""GeoDiff4D in JAX: one portrait in, an animatable 4D Gaussian head avatar out."""

__version__ = "0.1.0"
