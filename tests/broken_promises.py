"""How the tests see that a check of the conformance kit fails, and with which promise."""

import pytest

from crystal_gym.testing import BrokenPromise


def breaks(promise, check, *arguments, **options):
    """Run a check that has to fail with one promise; return what it says."""
    with pytest.raises(BrokenPromise) as caught:
        check(*arguments, **options)
    error = caught.value
    assert promise in error.promise
    assert str(error).endswith(f"breaks a promise: {error.promise}. Seen: {error.seen}. "
                               f"{error.advice}.")  # fmt: skip
    assert len(error.advice) > 10
    assert error.seen
    return error
