"""The bytes that fusions would spare are those of the network's maps, and the page says what is counted."""

import pytest

from experiments.benchmarks import fused_bytes

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def found():
    return fused_bytes.counted()


def test_counted_by_hand(found):
    inside = 2e-6 * (3 * 64 * 56**2 + 4 * 128 * 28**2 + 6 * 256 * 14**2 + 3 * 512 * 7**2)  # bfloat16, by stage
    first = 2e-6 * 64 * 112**2
    assert found["sums"] == pytest.approx(inside) and found["input"] == pytest.approx(2 * inside)
    assert found["maps"] == pytest.approx(found["statistics"] + inside + first)
    # Reducing ones, the first of a stage at the resolution before it; expanding ones, with one more in the shortcut.
    reducing = 3 * 64 * 56**2 + 128 * (56**2 + 3 * 28**2) + 256 * (28**2 + 5 * 14**2) + 512 * (14**2 + 2 * 7**2)
    expanding = 4 * 256 * 56**2 + 5 * 512 * 28**2 + 7 * 1024 * 14**2 + 4 * 2048 * 7**2
    assert found["statistics"] == pytest.approx(2e-6 * (reducing + expanding))


def test_the_page_says_it(found):
    assert fused_bytes.PAGE.read_text() == fused_bytes.render(found)
