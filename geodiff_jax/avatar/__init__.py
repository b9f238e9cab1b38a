"""Rigged Gaussian avatars: bound to a head, posed by its parameters."""
