"""Rules of fields, by what they let pass, and the one line that names what breaks them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from cnn_jax import fields


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (fields.one_of("a", "b"), ["a", "b"], ["c", None, 1]),
        (fields.one_of(False, True), [True, False], [0, 1, "True"]),
        (fields.POSITIVE, [1, 0.5, np.float32(2)], [0, -1, math.inf, math.nan, True, "1", None]),
        (fields.NOT_NEGATIVE, [0, 3.5], [-1e-9, math.inf, math.nan, False]),
        (fields.BELOW_ONE, [0, 0.999], [1, -0.1, math.nan]),
        (fields.FRACTION, [0, 0.5, 1], [1.01, -0.1, math.nan]),
        (fields.COUNT, [1, 7], [0, 1.0, True, "1"]),
        (fields.tuple_of(fields.POSITIVE), [(), (1, 2.5), [3]], [1, (0,), ("1",), "12"]),
    ],
)
def test_rules(rule, good, bad):
    is_allowed, words = rule
    assert words
    assert all(is_allowed(value) for value in good)
    assert not any(is_allowed(value) for value in bad)


def test_the_first_field_that_is_wrong_is_named():
    rules = {"rate": fields.POSITIVE, "kind": fields.one_of("a", "b"), "sizes": fields.tuple_of(fields.COUNT)}
    section = SimpleNamespace(rate=1.0, kind="a", sizes=(1, 2), other=None)
    fields.check_fields(section, "optim", rules)
    section.sizes = (1, 0)
    with pytest.raises(
        ValueError, match=r"^config\.optim\.sizes=\(1, 0\): must be a tuple, each of it an integer, 1 or"
    ):
        fields.check_fields(section, "optim", rules)
    section.kind = "c"
    with pytest.raises(ValueError, match=r"^config\.optim\.kind='c': must be one of 'a', 'b'$"):
        fields.check_fields(section, "optim", rules)
    del section.rate
    with pytest.raises(ValueError, match=r"^config\.optim\.rate is missing; must be a number above 0$"):
        fields.check_fields(section, "optim", rules)


def test_a_field_of_no_section():
    with pytest.raises(ValueError, match=r"^config\.loss=3: must be one of 'a'$"):
        fields.check_fields(SimpleNamespace(loss=3), "", {"loss": fields.one_of("a")})
    with pytest.raises(ValueError, match=r"^config\.loss is missing; must be one of 'a'$"):
        fields.check_fields(SimpleNamespace(), "", {"loss": fields.one_of("a")})
