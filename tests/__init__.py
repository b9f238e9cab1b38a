"""Tests mirror the package."""

from tests import shape_checking as shape_checking
