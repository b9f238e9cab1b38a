"""The built-in head and one look, shared by the tests of appearance."""

import jax
import pytest

from geodiff_jax.appearance import hair, texture
from geodiff_jax.appearance import look as appearance
from geodiff_jax.head import procedural


@pytest.fixture(scope="session")
def head():
    return procedural.load()


@pytest.fixture(scope="session")
def look():
    return appearance.sample_look(jax.random.key(1))


@pytest.fixture(scope="session")
def maps(head, look):
    return texture.bake_maps(head, look, size=192)


@pytest.fixture(scope="session")
def locks(head, look):
    return hair.grow(head, look)
