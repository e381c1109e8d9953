"""`crystal_gym.crystal_key`: one name for one crystal, however it is written."""

import itertools
import warnings

import numpy as np
import pytest
from made_crystals import NAMES, STRUCTURES, replaced, tokens_of
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.core.operations import SymmOp

from crystal_gym.crystal_key import cell_key, structure_key
from crystal_gym.skeletons import build_skeletons, filled_structure
from crystal_gym.structures import cell_from_structure

LATTICES = {
    "cubic": Lattice.cubic(4.1),
    "face-centred": Lattice([[0, 2.1, 2.1], [2.1, 0, 2.1], [2.1, 2.1, 0]]),
    "body-centred": Lattice([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]),
    "tetragonal": Lattice.tetragonal(4.0, 5.3),
    "body-centred tetragonal": Lattice([[-2, 2, 2.9], [2, -2, 2.9], [2, 2, -2.9]]),
    "hexagonal": Lattice.hexagonal(3.9, 6.1),
    "obtuse rhombohedral": Lattice.rhombohedral(4.4, 100),
    "acute rhombohedral": Lattice.rhombohedral(5.1, 50),
    "orthorhombic": Lattice.orthorhombic(3.9, 4.5, 5.7),
    "face-centred orthorhombic": Lattice([[0, 2, 3], [2.7, 0, 3], [2.7, 2, 0]]),
    "base-centred orthorhombic": Lattice([[2, 3.3, 0], [2, -3.3, 0], [0, 0, 5.1]]),
    "monoclinic": Lattice.monoclinic(4, 5, 6, 103),
    "base-centred monoclinic": Lattice([[2, 3.3, 0], [2, -3.3, 0], [1.1, 0, 5.1]]),
    "obtuse triclinic": Lattice.from_parameters(4, 5, 6, 101, 97, 106),
    "acute triclinic": Lattice.from_parameters(4, 5, 6, 71, 77, 66),
    "equal lengths and angles of 60": Lattice.from_parameters(4, 4, 4, 60, 60, 90),
}
ZINCBLENDE = [[0, 0, 0], [0.25, 0.25, 0.25]]


def permuted(structure, generator):
    sites = list(structure)
    return Structure.from_sites([sites[i] for i in generator.permutation(len(sites))])


def shifted(structure, generator):
    sites = structure.frac_coords + generator.random(3)
    return Structure(structure.lattice, structure.species, sites)


def with_sites_elsewhere(structure, generator):
    sites = structure.frac_coords + generator.integers(-3, 4, (len(structure), 3))
    return Structure(structure.lattice, structure.species, sites)


def rotated(structure, generator):
    turned = structure.copy()
    angle = generator.uniform(0, 360)
    turned.apply_operation(SymmOp.from_axis_angle_and_translation(generator.normal(size=3), angle))
    return turned


def mirrored(structure, generator):
    matrix = structure.lattice.matrix * [1, 1, -1]
    return Structure(matrix, structure.species, structure.frac_coords)


def on_other_vectors(structure, generator):
    while True:
        change = generator.integers(-2, 3, (3, 3))
        if abs(round(np.linalg.det(change))) == 1:
            sites = structure.frac_coords @ np.linalg.inv(change)
            return Structure(change @ structure.lattice.matrix, structure.species, sites)


def oxidised(structure, generator):
    charged = structure.copy()
    charged.add_oxidation_state_by_site([1] * len(structure))
    return charged


def with_properties(structure, generator):
    marked = structure.copy()
    marked.add_site_property("magmom", list(range(len(structure))))
    return marked


CHANGES = [
    permuted,
    shifted,
    with_sites_elsewhere,
    rotated,
    mirrored,
    on_other_vectors,
    oxidised,
    with_properties,
]


def scrambled(structure, generator):
    for change in (on_other_vectors, shifted, rotated, permuted):
        structure = change(structure, generator)
    return structure


def random_structure(lattice, elements, generator, n_sites=None):
    """Return 2 to 5 sites, on a coarse grid half of the time: symmetric more often than not."""
    while True:
        count = n_sites or generator.integers(2, 6)
        sites = generator.random((count, 3))
        if generator.random() < 0.5:
            sites = np.round(sites * 4) / 4
        structure = Structure(lattice, generator.choice(elements, count), sites)
        if structure.is_valid(0.8):
            return structure


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_another_way_to_write_a_crystal_has_its_key(name, change):
    structure, generator = STRUCTURES[name], np.random.default_rng(1)
    keys = {structure_key(change(structure, generator)) for _ in range(5)}
    assert keys == {structure_key(structure)}


@pytest.mark.parametrize("name", LATTICES)
def test_any_cell_of_any_lattice_gives_the_same_key(name):
    generator = np.random.default_rng(2)
    for _ in range(5):
        structure = random_structure(LATTICES[name], ["Na", "Cl", "O"], generator)
        keys = {structure_key(scrambled(structure, generator)) for _ in range(4)}
        assert keys == {structure_key(structure)}


def test_real_crystals_keep_their_key_in_their_reduced_cell(real_structures):
    for structure in real_structures:
        cell = cell_from_structure(structure)
        written = filled_structure(cell.lattice, cell.frac_coords, cell.reference)
        assert structure_key(written) == structure_key(structure)


def test_keys_are_those_of_the_databases_there_are():
    """A database is worth nothing once these change."""
    assert structure_key(STRUCTURES["rocksalt"]) == "c11fa06cee814e03e6c0d9ba8f3e06b1"
    assert structure_key(STRUCTURES["triclinic"]) == "d4edb7ab8d3e29b1d051429518c3c95d"


def supercell(structure):
    return structure.make_supercell([2, 1, 1], in_place=False)


def larger(structure):
    return Structure(structure.lattice.scale(1.01 * structure.volume), structure.species, SITES)


def other_element(structure):
    return replaced(structure, ["K", "Cl"])


def zincblende(structure):
    return Structure(structure.lattice, structure.species, ZINCBLENDE)


def one_site_moved(structure):
    return Structure(structure.lattice, structure.species, [[0, 0, 0], [0.5, 0.5, 0.501]])


def one_site_more(structure):
    return Structure(structure.lattice, ["Na", "Cl", "Cl"], [*SITES, [0.25, 0.25, 0.25]])


SITES = [[0, 0, 0], [0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    "change", [supercell, larger, other_element, zincblende, one_site_moved, one_site_more]
)
def test_another_crystal_has_another_key(change):
    structure = Structure(STRUCTURES["rocksalt"].lattice, ["Na", "Cl"], SITES)
    assert structure_key(structure) == structure_key(STRUCTURES["rocksalt"])
    assert structure_key(change(structure)) != structure_key(structure)


def test_swapping_the_elements_of_rocksalt_makes_no_difference():
    salt = STRUCTURES["rocksalt"]
    assert structure_key(replaced(salt, ["Cl", "Na"])) == structure_key(salt)


def test_orders_of_one_lattice_that_no_symmetry_joins_have_different_keys():
    cubic = Structure(Lattice.cubic(5.64), ["X"] * 8, NACL_SITES)
    keys = {}
    for metals in itertools.combinations(range(8), 4):
        species = ["Na" if i in metals else "Cl" for i in range(8)]
        keys.setdefault(structure_key(replaced(cubic, species)), []).append(metals)
    matcher = exact_matcher()
    examples = [
        replaced(cubic, ["Na" if i in metals[0] else "Cl" for i in range(8)])
        for metals in keys.values()
    ]
    assert sum(map(len, keys.values())) == 70
    assert not any(matcher.fit(a, b) for a, b in itertools.combinations(examples, 2))


NACL_SITES = list(itertools.product((0, 0.5), repeat=3))


def exact_matcher():
    return StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, primitive_cell=False, scale=False)


SKELETONS = {
    "rocksalt": (LATTICES["face-centred"], SITES),
    "rocksalt of eight sites": (Lattice.cubic(4.2), NACL_SITES),
    "antifluorite": (LATTICES["face-centred"], [[0, 0, 0], [0.25] * 3, [0.75] * 3]),
    "perovskite": (
        Lattice.cubic(3.9),
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    ),
    "wurtzite": (
        Lattice.hexagonal(3.8, 6.3),
        [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.37], [2 / 3, 1 / 3, 0.87]],
    ),
    "rutile": (
        Lattice.tetragonal(4.6, 2.96),
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.3, 0.3, 0],
            [0.7, 0.7, 0],
            [0.2, 0.8, 0.5],
            [0.8, 0.2, 0.5],
        ],
    ),
    "orthorhombic": (Lattice.orthorhombic(4, 5, 6), [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]]),
    "triclinic": (
        LATTICES["acute triclinic"],
        [[0.1, 0.2, 0.3], [0.6, 0.1, 0.9], [0.4, 0.6, 0.6], [0.9, 0.8, 0.2]],
    ),
}


@pytest.mark.parametrize("name", SKELETONS)
def test_fillings_share_a_key_exactly_if_the_skeletons_symmetry_joins_them(name):
    lattice, sites = SKELETONS[name]
    bare = Structure(lattice, [DummySpecies("X")] * len(sites), sites)
    (skeleton,), problems = build_skeletons([cell_from_structure(bare)], workers=1)
    assert not problems
    palette = tokens_of(["Na", "Cl", "O"])
    fillings = np.array(list(itertools.product(palette, repeat=skeleton.n_sites)), dtype=np.int16)
    if len(fillings) > 300:
        fillings = fillings[np.random.default_rng(3).permutation(len(fillings))[:300]]
    keys, orbits = {}, {}
    for filling in fillings:
        key = cell_key(skeleton.lattice, skeleton.frac_coords, filling)
        orbit = skeleton.canonical_tokens(filling)
        assert keys.setdefault(orbit, key) == key
        assert orbits.setdefault(key, orbit) == orbit
    assert len(keys) == len(orbits)


@pytest.mark.parametrize("name", SKELETONS)
def test_a_filling_has_the_key_of_its_structure(name):
    lattice, sites = SKELETONS[name]
    bare = Structure(lattice, [DummySpecies("X")] * len(sites), sites)
    (skeleton,), _ = build_skeletons([cell_from_structure(bare)], workers=1)
    generator = np.random.default_rng(4)
    for _ in range(10):
        tokens = generator.choice(tokens_of(["Na", "Cl", "O", "Ti"]), skeleton.n_sites)
        structure = scrambled(skeleton.structure(tokens), generator)
        assert cell_key(skeleton.lattice, skeleton.frac_coords, tokens) == structure_key(structure)


def test_keys_agree_with_pymatgens_structure_matcher():
    generator = np.random.default_rng(5)
    matcher, agreed = exact_matcher(), []
    for name in ("cubic", "face-centred", "tetragonal", "hexagonal", "acute triclinic"):
        for _ in range(6):
            # Few elements on a coarse grid: a pair is the same crystal every few times.
            first = random_structure(LATTICES[name], ["Na", "Cl"], generator, 3)
            sites = np.round(first.frac_coords * 4) / 4
            first = Structure(first.lattice, first.species, sites)
            if not first.is_valid(0.8):
                continue
            swapped = replaced(first, generator.permutation([s.symbol for s in first.species]))
            second = scrambled(swapped, generator)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                same = matcher.fit(first, second)
            assert (structure_key(first) == structure_key(second)) == same
            agreed.append(same)
    assert True in agreed
    assert False in agreed


def disordered():
    return Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def overlapping():
    return Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0.01, 0, 0]])


def foreign_element():
    return Structure(Lattice.cubic(4), ["Po"], [[0, 0, 0]])


@pytest.mark.parametrize("make", [disordered, overlapping, foreign_element])
def test_what_is_no_usable_crystal_has_no_key(make):
    with pytest.raises(ValueError, match="expected"):
        structure_key(make())


def test_a_structure_is_left_as_it_was():
    structure = scrambled(STRUCTURES["triclinic"], np.random.default_rng(6))
    before = structure.copy()
    structure_key(structure)
    assert structure == before
    assert structure.frac_coords.tobytes() == before.frac_coords.tobytes()
