"""Conformance: does your oracle, reward or encoder keep the promises that crystal_gym relies on?

Three functions run on your own object and raise :class:`BrokenPromise`, an ``AssertionError`` that
names the promise, what was seen and what to do next. In a test-suite of yours::

    import pytest
    from crystal_gym.testing import check_encoder_factory, check_oracle, check_reward, tiny_crystals

    from mine import MyEncoderFactory, MyOracle, my_reward

    def test_my_oracle():
        check_oracle(MyOracle(), list(tiny_crystals().values()))

    def test_my_reward():
        check_reward(my_reward, targets=(1.12, 3.0))

    def test_my_encoder():
        check_encoder_factory(MyEncoderFactory())

Beside them are tiny crystals, the same crystals written in other ways, crystals that nothing can
calculate, and oracles that calculate nothing. Importing this package loads neither torch nor
pymatgen.
"""

from __future__ import annotations

from crystal_gym.testing.crystals import (
    SAME_CRYSTAL,
    fluorite,
    impossible_crystals,
    layered,
    molecular,
    moved,
    on_other_vectors,
    perovskite,
    renumbered,
    replaced,
    rocksalt,
    rotated,
    tiny_crystals,
    triclinic,
    wurtzite,
)
from crystal_gym.testing.encoders import check_encoder_factory
from crystal_gym.testing.fakes import FixedOracle, FormulaOracle
from crystal_gym.testing.oracles import check_oracle
from crystal_gym.testing.promises import BrokenPromise
from crystal_gym.testing.rewards import check_reward

__all__ = [
    "SAME_CRYSTAL",
    "BrokenPromise",
    "FixedOracle",
    "FormulaOracle",
    "check_encoder_factory",
    "check_oracle",
    "check_reward",
    "fluorite",
    "impossible_crystals",
    "layered",
    "molecular",
    "moved",
    "on_other_vectors",
    "perovskite",
    "renumbered",
    "replaced",
    "rocksalt",
    "rotated",
    "tiny_crystals",
    "triclinic",
    "wurtzite",
]
