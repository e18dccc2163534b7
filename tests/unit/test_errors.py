"""Errors: types a caller can catch, names a user can read."""

import pytest

from teefusion_core import errors


def test_reported_by_keeps_the_type_with_a_longer_message():
    with pytest.raises(errors.ShapeMismatch, match=r"^Some Node: too wide$"), errors.reported_by("Some Node"):
        raise errors.ShapeMismatch("too wide")


def test_reported_by_leaves_foreign_errors_alone():
    with pytest.raises(KeyError) as caught, errors.reported_by("Some Node"):
        raise KeyError("x")
    assert caught.value.args == ("x",)
