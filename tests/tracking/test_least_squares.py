import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.tracking import least_squares


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def solve(residual, start, data=None, free=None, **options):
    start = jnp.asarray(start, jnp.float64)
    free = jnp.ones(len(start), bool) if free is None else jnp.asarray(free)
    return least_squares.levenberg_marquardt(
        residual, start, data, free=free, **options
    )


def test_linear_problem_is_solved_as_lstsq_does():
    generator = np.random.default_rng(0)
    matrix, right = generator.normal(size=(30, 8)), generator.normal(size=30)
    solution = solve(lambda x, d: d[0] @ x - d[1], np.zeros(8), (matrix, right))
    expected = np.linalg.lstsq(matrix, right, rcond=None)[0]
    # The last step gains less than 1e-6 of the objective: distances go with its root.
    np.testing.assert_allclose(solution.unknowns, expected, atol=1e-3)
    assert solution.iterations < 10


def test_rosenbrock_valley_is_followed_to_its_end():
    def residual(x, _):
        return jnp.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])

    solution = solve(residual, [-1.2, 1.0], max_iterations=100)
    np.testing.assert_allclose(solution.unknowns, [1.0, 1.0], atol=1e-6)


def test_frozen_and_unseen_unknowns_stay():
    def residual(x, _):
        return jnp.stack([x[0] + x[1] - 3.0])

    solution = solve(residual, [0.5, 1.0, 7.0], free=[True, False, True])
    np.testing.assert_allclose(solution.unknowns, [2.0, 1.0, 7.0], atol=1e-6)


def test_objective_never_rises_and_steps_into_nan_are_refused():
    def residual(x, _):
        return jnp.log(x) + 5.0  # Undefined left of zero, where full steps lead.

    solution = solve(residual, [3.0], max_iterations=100)
    np.testing.assert_allclose(solution.unknowns, [np.exp(-5.0)], rtol=1e-3)


def test_start_at_the_minimum_is_kept():
    solution = solve(lambda x, _: x - 2.0, [2.0])
    assert solution.unknowns[0] == 2.0 and solution.objective == 0.0
