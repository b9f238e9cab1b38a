"""Head models: one pytree that every source of heads fills alike."""

from geodiff_jax.head.model import HeadModel as HeadModel
from geodiff_jax.head.model import HeadParams as HeadParams
