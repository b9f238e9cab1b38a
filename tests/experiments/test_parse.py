"""Arguments of configs: typed by their defaults, unknown ones refused."""

import pytest

from experiments.configs import parse

DEFAULTS = {"preset": "preview", "steps": 600, "rate": 0.5, "flip": False}


def test_nothing_means_the_defaults():
    assert parse.arguments("", **DEFAULTS) == DEFAULTS


def test_values_take_the_type_of_their_default():
    found = parse.arguments("preset=high,steps=3,rate=1,flip=true", **DEFAULTS)
    assert found == {"preset": "high", "steps": 3, "rate": 1.0, "flip": True}
    assert isinstance(found["rate"], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("presett=high", "a key among flip, preset, rate, steps .* got 'presett=high'"),
        ("high", "got 'high'"),
        ("steps=many", "of type int for steps, got 'many'"),
        ("flip=yes", "true or false for flip, got 'yes'"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse.arguments(text, **DEFAULTS)
