"""Cameras and meshes: the geometry that every floor above shares."""

from geodiff_jax.geometry.camera import Camera as Camera
