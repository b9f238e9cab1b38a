import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import flatten_util
from scipy.spatial import transform

from geodiff_jax.head import procedural
from geodiff_jax.tracking import energy, fit, outline
from tests.tracking import synthetic


@pytest.fixture(scope="module")
def view():
    model = procedural.load()
    shot = synthetic.portrait(model, synthetic.person(model, yaw_degrees=10.0))
    with jax.enable_x64(True):
        return fit._make_view(model, shot.photo, shot.detection, fit.FitConfig())


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def problem_of(view, lines=None, lean=0.0):
    return energy.make_problem(
        view.model,
        view.basis,
        view.intrinsics,
        view.detection.ibug,
        np.ones(68),
        outline.nothing() if lines is None else lines,
        lean,
        view.config,
    )


def outline_of(view, unknowns):
    return fit._outline(view, fit._pixels(view, fit._pose(view, unknowns)[0]))


def random_unknowns(view, seed=0):
    """Near the start, but with every unknown set."""
    start, generator = fit._start(view), np.random.default_rng(seed)
    scales = {"rotation": 0.05, "placement": 0.01, "identity": 0.5}
    return energy.Unknowns(
        **{
            name: value + scales.get(name, 0.2) * generator.normal(size=np.shape(value))
            for name, value in vars(start).items()
        }
    )


residuals = jax.jit(energy._residuals)


def test_jacobian_is_that_of_finite_differences(view):
    unknowns = random_unknowns(view)
    problem = problem_of(view, outline_of(view, unknowns))
    vector, unravel = flatten_util.ravel_pytree(unknowns)
    direction = np.random.default_rng(1).normal(size=vector.shape)
    _, slope = jax.jvp(
        lambda v: residuals(unravel(v), problem), (vector,), (direction,)
    )
    step = 1e-6
    ahead = residuals(unravel(vector + step * direction), problem)
    behind = residuals(unravel(vector - step * direction), problem)
    numeric = (ahead - behind) / (2 * step)
    # Central differences: step² of the third derivative and round-off / step.
    np.testing.assert_allclose(numeric, slope, rtol=1e-5, atol=1e-4)


def test_frames_of_one_person_add_up(view):
    """Two frames' residuals are each frame's own; shared priors count once."""
    first, second = random_unknowns(view, 0), random_unknowns(view, 1)
    second = second.replace(identity=first.identity, field=first.field)
    lines = [outline_of(view, u) for u in (first, second)]
    single = [problem_of(view, ls) for ls in lines]
    joined = outline.Lines(*(np.stack(pair) for pair in zip(*lines, strict=True)))
    kept = np.concatenate([ls.vertices for ls in lines])
    both = problem_of(view, lines[0]._replace(vertices=kept)).replace(
        lines=joined,
        **{
            name: jnp.concatenate([getattr(p, name) for p in single])
            for name in ("intrinsics", "found", "landmark_weights")
        },
    )
    frames = {
        name: jnp.concatenate([getattr(u, name) for u in (first, second)])
        for name in ("rotation", "placement", "expression", "eyelids")
    }
    together = np.sum(np.square(residuals(first.replace(**frames), both)))
    apart = [
        np.sum(np.square(residuals(u, p)))
        for u, p in zip((first, second), single, strict=True)
    ]
    shared = np.sum(first.identity**2) + np.sum(first.field**2)
    np.testing.assert_allclose(together, sum(apart) - shared, rtol=1e-10)


def priors_only(view, **changed):
    """Sum of squares without the image: the priors of `changed` alone."""
    problem = problem_of(view)
    silent = problem.replace(landmark_weights=jnp.zeros_like(problem.landmark_weights))
    level = jnp.asarray([[np.pi, 0.0, 0.0]])
    unknowns = fit._start(view).replace(rotation=level)
    return float(np.sum(np.square(residuals(unknowns.replace(**changed), silent))))


def strength(view, **strengths):
    values = np.zeros((1, len(view.model.expression_names)))
    for name, value in strengths.items():
        values[0, view.model.expression_names.index(name)] = value
    return jnp.asarray(values)


def test_the_average_face_at_eye_level_costs_nothing(view):
    # sin(pi) of a double is 1e-16.
    assert priors_only(view) < 1e-20


@pytest.mark.parametrize("angle", [-0.1, 0.05])
def test_nodding_costs_but_turning_does_not(view, angle):
    nod = priors_only(view, rotation=jnp.asarray([[np.pi + angle, 0.0, 0.0]]))
    assert nod == pytest.approx((np.sin(angle) / view.config.lean_sigma) ** 2)
    half = 0.5 * angle
    turned = np.pi * np.array([[np.cos(half), 0.0, np.sin(half)]])
    assert priors_only(view, rotation=jnp.asarray(turned)) < 1e-20


@pytest.mark.parametrize("wanted", [-12.0, 0.0, 9.0])
def test_the_mesh_says_how_far_the_head_leans_whatever_its_roll(view, wanted):
    config = fit.FitConfig()
    upright = np.zeros((478, 3))
    upright[[10, 151, 9], 1] = -100.0
    upright[[152, 175, 199], 1] = 80.0
    angle = config.lean_rest - np.radians(wanted) / config.lean_share
    for roll in (0.0, 0.4):
        turn = transform.Rotation.from_euler("xz", [angle, roll])
        mesh = turn.apply(upright) + 200
        found = dataclasses.replace(view.detection, landmarks_478=mesh)
        lean = fit._lean(found, config)
        assert lean == pytest.approx(np.sin(np.radians(wanted)))


def test_without_a_mesh_the_head_is_expected_upright(view):
    found = dataclasses.replace(view.detection, landmarks_478=None)
    assert fit._lean(found, fit.FitConfig()) == 0.0


def test_strengths_outside_their_range_cost_extra(view):
    sigma, weight = view.config.expression_sigma, view.config.bound_weight
    inside = priors_only(view, expression=strength(view, jawOpen=0.5))
    assert inside == pytest.approx((0.5 / sigma) ** 2)
    above = priors_only(view, expression=strength(view, jawOpen=1.1))
    assert above == pytest.approx((1.1 / sigma) ** 2 + (0.1 * weight) ** 2)
    below = priors_only(view, expression=strength(view, jawOpen=-0.1))
    assert below == pytest.approx((0.1 / sigma) ** 2 + (0.1 * weight) ** 2)


def test_one_sided_expressions_cost_more_than_even_ones(view):
    even = priors_only(
        view, expression=strength(view, mouthSmile_L=0.5, mouthSmile_R=0.5)
    )
    odd = priors_only(view, expression=strength(view, mouthSmile_L=0.5))
    sigma, pair = view.config.expression_sigma, view.config.asymmetry_sigma
    assert even == pytest.approx(2 * (0.5 / sigma) ** 2)
    assert odd == pytest.approx((0.5 / sigma) ** 2 + (0.5 / pair) ** 2)


def test_identity_costs_its_square_and_more_beyond_its_bound(view):
    config = view.config

    def cost(value):
        identity = np.zeros(len(view.model.identity_names))
        identity[3] = value
        return priors_only(view, identity=jnp.asarray(identity))

    assert cost(-1.0) == pytest.approx(1.0)
    excess = 0.5 * config.bound_weight
    beyond = config.identity_bound + 0.5
    assert cost(-beyond) == pytest.approx(beyond**2 + excess**2)


def test_outer_bounds_pull_only_from_outside(view):
    start = fit._start(view)
    lines = outline_of(view, start)
    # Nothing but the outline: the start of a bowed head costs its pitch.
    view = dataclasses.replace(
        view, config=dataclasses.replace(view.config, lean_sigma=np.inf)
    )
    pixels = fit._pixels(view, fit._pose(view, start)[0])
    at = np.sum(lines.normals * pixels[lines.vertices], axis=1)
    ones = np.ones_like(at)
    bound = lines._replace(weights=ones, outer_only=ones > 0)

    def cost(targets):
        problem = problem_of(view, bound._replace(targets=targets))
        silent = problem.replace(landmark_weights=jnp.zeros((1, 68)))
        return float(np.sum(np.square(residuals(start, silent))))

    assert cost(at + 2.0) == pytest.approx(0.0, abs=1e-12)
    assert cost(at - 2.0) == pytest.approx(4.0 * len(at), rel=1e-6)


def test_frozen_unknowns_are_left_alone(view):
    start = random_unknowns(view)
    free = {name: jnp.asarray(name == "rotation") for name in vars(start)}
    solved = energy.solve(problem_of(view), start, free, max_iterations=40)
    for name, value in vars(start).items():
        moved = not jnp.array_equal(value, getattr(solved, name))
        assert moved == (name == "rotation"), name
