"""Shared test data and settings."""

import pathlib

import pytest

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> pathlib.Path:
    """A file or folder of the shared data; skips by name where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not among the shared data at {SHARED_DATA}")
    return path
