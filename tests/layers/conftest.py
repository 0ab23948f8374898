"""What the tests of layers share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """As users run it: no hook looks at the types in signatures before the functions' own messages can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
