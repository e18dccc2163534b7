"""Errors: types a caller can catch, names a user can read."""

import pytest

from teefusion_core import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [("ShapeMismatch", ValueError), ("InvalidConfig", ValueError), ("MissingExtra", ImportError)],
)
def test_errors_are_also_what_python_would_raise(error, builtin):
    assert issubclass(getattr(errors, error), (errors.TeEFusionError, builtin))
    assert issubclass(getattr(errors, error), builtin)


def test_reported_by_keeps_the_type_with_a_longer_message():
    with pytest.raises(errors.ShapeMismatch, match=r"^Some Node: too wide$"), errors.reported_by("Some Node"):
        raise errors.ShapeMismatch("too wide")


def test_reported_by_leaves_foreign_errors_alone():
    with pytest.raises(KeyError) as caught, errors.reported_by("Some Node"):
        raise KeyError("x")
    assert caught.value.args == ("x",)
