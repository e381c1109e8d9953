"""The crystals of the bundled DFT table and the making of their cells, without a pw.x."""

import json
import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spglib
from pymatgen.core import Element

from crystal_gym.crystal_key import structure_key
from crystal_gym.oracles import Properties, Status
from crystal_gym.oracles.espresso import PRESETS
from crystal_gym.validity import smact_valid

SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)
try:
    import make_mini
    import mini_crystals
finally:
    sys.path.remove(SCRIPTS)

# Molybdenum counts as more electronegative than tellurium, so SMACT has no cation here.
NOT_SMACT = {"MoTe2-molybdenite"}


@pytest.fixture(scope="module")
def listed():
    return mini_crystals.candidates()


@pytest.fixture(scope="module")
def by_name(listed):
    return {candidate.name: candidate for candidate in listed}


@pytest.fixture(scope="module")
def one_of_each(listed):
    """The last crystal of each structure type: an estimate, where there are any."""
    return list({c.structure_type: c for c in listed}.values())


def bonds(structure):
    """Distance of the nearest neighbour of every site, its own images included, and its element."""
    for site, around in zip(structure, structure.get_all_neighbors(5.0), strict=True):
        nearest = min(around, key=lambda neighbour: neighbour.nn_distance)
        yield nearest.nn_distance, {site.specie.symbol, nearest.specie.symbol}


def symmetry(candidate, tolerance=1e-4):
    numbers = [Element(s).Z for s in candidate.species]
    return spglib.get_symmetry_dataset(
        (candidate.lattice, candidate.frac_coords, numbers), symprec=tolerance
    )


# --------------------------------------------------------------------------- the list


def test_there_are_many_of_many_kinds(listed):
    assert len(listed) >= 450
    assert len({c.structure_type for c in listed}) >= 12
    assert len({s for c in listed for s in c.species}) >= 40
    assert sum(c.needs_fit for c in listed) < len(listed) / 2
    assert len({c.name for c in listed}) == len(listed)


def test_no_crystal_is_listed_twice(listed):
    keys = Counter(structure_key(c.structure()) for c in listed)
    assert max(keys.values()) == 1


def test_cells_are_small(listed):
    sizes = [len(c.species) for c in listed]
    assert min(sizes) >= 2
    assert max(sizes) <= 8
    assert np.mean(np.array(sizes) <= 5) > 0.7


def test_elements_without_a_reference_are_absent(listed):
    for candidate in listed:
        assert not set(candidate.species) & mini_crystals.EXCLUDED
        assert not any(Element(s).is_actinoid for s in candidate.species)
        lanthanides = {s for s in candidate.species if Element(s).is_lanthanoid}
        assert lanthanides <= {"La"}


def test_electrons_are_even(listed):
    # Cores are closed shells, so the valence electrons are even where the protons are.
    odd = [c.name for c in listed if sum(Element(s).Z for s in c.species) % 2]
    assert odd == []


def test_charges_balance(listed):
    unbalanced = {c.name for c in listed if not smact_valid(Counter(c.species))}
    assert unbalanced == NOT_SMACT


def test_atoms_keep_their_distance(listed):
    for candidate in listed:
        for distance, pair in bonds(candidate.structure()):
            assert distance > (0.9 if "H" in pair else 1.4), candidate.name
            contact = sum(mini_crystals._radius(s) for s in [*pair, *pair][:2])
            assert distance > 0.7 * contact, candidate.name


def test_every_type_has_its_space_group_in_a_primitive_cell(listed, one_of_each):
    numbers = {kind.label or name: kind.space_group for name, kind in mini_crystals.TYPES.items()}
    assert {c.structure_type for c in listed} == set(numbers)
    for candidate in one_of_each:
        dataset = symmetry(candidate)
        assert dataset.number == numbers[candidate.structure_type], candidate.name
        assert len(set(dataset.mapping_to_primitive)) == len(candidate.species), candidate.name


@pytest.mark.parametrize(
    ("name", "element", "distance", "count"),
    [
        ("NaCl-rocksalt", "Na", 2.82, 6),
        ("TiO2-anatase", "Ti", 1.95, 6),
        ("PbO-litharge", "Pb", 2.31, 4),
        ("HgI2-mercury-iodide", "Hg", 2.79, 4),
        ("ZnSiP2-chalcopyrite", "Si", 2.25, 4),
        ("SnS-germanium-sulfide", "Sn", 2.66, 3),
        ("MoS2-molybdenite", "Mo", 2.42, 6),
        ("GaS-gallium-sulfide", "Ga", 2.36, 4),
        ("HgS-cinnabar", "Hg", 2.37, 2),
        ("Se-selenium", "Se", 2.37, 2),
        ("P-black-phosphorus", "P", 2.24, 3),
        ("La2O3-lanthanum-oxide", "La", 2.39, 4),
        ("K2PtCl4-potassium-tetrachloroplatinate", "Pt", 2.30, 4),
        ("XeF2-xenon-fluoride", "Xe", 1.98, 2),
        ("AlF3-aluminium-fluoride", "Al", 1.80, 6),
        ("Ag2O-cuprite", "O", 2.05, 4),
        ("LiCoO2-sodium-iron-oxide", "Co", 1.92, 6),
        ("ZrNiSn-half-heusler", "Ni", 2.65, 8),
        ("KMgF3-perovskite", "Mg", 1.99, 6),
        ("Mg3NAs-antiperovskite", "N", 2.11, 6),
    ],
)
def test_coordination_is_the_known_one(by_name, name, element, distance, count):
    structure = by_name[name].structure()
    site = next(site for site in structure if site.specie.symbol == element)
    near = structure.get_neighbors(site, 1.06 * distance)
    assert len(near) == count
    assert np.mean([n.nn_distance for n in near]) == pytest.approx(distance, abs=0.05)


def test_every_candidate_says_where_its_cell_is_from(listed):
    for candidate in listed:
        start = "estimate" if candidate.needs_fit else "experimental lattice constant, "
        assert candidate.lattice_source.startswith(start)
        assert "a = " in candidate.lattice_source


def test_a_measured_cell_is_the_one_in_the_table(by_name):
    crystal = by_name["ZnO-wurtzite"]
    assert crystal.structure().lattice.abc == pytest.approx((3.250, 3.250, 5.207))
    assert crystal.lattice_source == (
        "experimental lattice constant, room temperature: a = 3.25 Å, c = 5.207 Å, u = 0.382"
    )
    assert by_name["BaTiO3-perovskite"].lattice_source == (
        "experimental lattice constant, cubic phase, above 393 K: a = 4.0 Å"
    )


def test_conditions_are_those_of_listed_crystals(by_name):
    assert set(mini_crystals.CONDITIONS) <= set(by_name)


def test_scaling_multiplies_lengths_only(by_name):
    crystal = by_name["TiO2-rutile"]
    large, small = crystal.structure(1.1), crystal.structure()
    assert large.volume == pytest.approx(1.1**3 * small.volume)
    assert np.allclose(large.frac_coords, small.frac_coords)
    assert crystal.describe(1.1) == "a = 5.0534 Å, c = 3.2549 Å, u = 0.305"


def test_estimates_come_from_the_most_similar_crystal(by_name):
    known = [mini_crystals._Known(f, (1.0,)) for f in ("KMgF3", "CsPbBr3", "SrTiO3")]
    assert mini_crystals.most_similar("RbPbBr3", known).formula == "CsPbBr3"
    assert mini_crystals.most_similar("CaTiO3", known).formula == "SrTiO3"
    assert by_name["CaTiO3-perovskite"].lattice_source.startswith("estimate from SrTiO3: a = 3.8")


def test_estimates_are_close_where_the_answer_is_known():
    """Every measured cubic cell, estimated from the others of its type."""
    errors = []
    for name in ("rocksalt", "zincblende", "antifluorite", "perovskite"):
        kind, table = mini_crystals.TYPES[name], mini_crystals.MEASURED[name]
        for formula, (true,) in table.items():
            others = [mini_crystals._Known(f, c) for f, c in table.items() if f != formula]
            origin = mini_crystals.most_similar(formula, others)
            ratio = mini_crystals.bond_length(
                kind, origin.constants, formula
            ) / mini_crystals.bond_length(kind, origin.constants, origin.formula)
            errors.append(ratio * origin.constants[0] / true - 1)
    assert np.mean(np.abs(errors)) < 0.03
    assert np.percentile(np.abs(errors), 90) < 0.08


@pytest.mark.slow
def test_prototypes_are_small_and_no_candidates(listed, by_name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's own, of its symmetry and data packages
        library = mini_crystals.prototypes()
    assert len(library) >= 60
    assert max(len(c.species) for c in library) <= 8
    names = [c.name for c in library]
    assert len(set(names)) == len(names)
    assert not set(names) & set(by_name)
    assert not any(c.needs_fit for c in library)
    assert not any("B1-" in name or "A4-" in name for name in names)  # rock salt, diamond
    assert "HgBr2-C24-A2B_oC12_36_2a_a" in names
    assert all(c.lattice_source == "AFLOW prototype (pymatgen)" for c in library)
    assert not any(set(c.species) & mini_crystals.EXCLUDED for c in library)
    keys = Counter(structure_key(c.structure()) for c in [*listed, *library])
    assert max(keys.values()) == 1


# --------------------------------------------------------------------------- the fit


def birch_murnaghan(scale, minimum=1.0, bulk_modulus=1.0, derivative=4.0, energy=-100.0):
    eta = (minimum / scale) ** 2
    curve = (eta - 1) ** 3 * derivative + (eta - 1) ** 2 * (6 - 4 * eta)
    return energy + 9 / 16 * bulk_modulus * curve


@pytest.mark.parametrize("minimum", [0.96, 0.98, 1.0, 1.03])
def test_a_second_order_curve_is_fitted_exactly(minimum):
    energies = [birch_murnaghan(s, minimum) for s in make_mini.START]
    assert make_mini.parabola_minimum(make_mini.START, energies) == pytest.approx(minimum, abs=1e-9)


def test_other_stiffness_changes_little():
    energies = [birch_murnaghan(s, 1.01, derivative=5.0) for s in make_mini.START]
    found = make_mini.parabola_minimum(make_mini.START, energies)
    assert found == pytest.approx(1.01, rel=2e-3)


def test_large_total_energies_do_not_spoil_the_fit():
    energies = [birch_murnaghan(s, 1.02, bulk_modulus=0.5, energy=-1234.5) for s in make_mini.START]
    assert make_mini.parabola_minimum(make_mini.START, energies) == pytest.approx(1.02, abs=1e-7)


def test_a_maximum_is_no_minimum():
    with pytest.raises(make_mini.FitError, match="no minimum"):
        make_mini.parabola_minimum((0.95, 1.0, 1.05), (-1.1, -1.0, -1.1))


def test_a_bracketed_minimum_needs_nothing_more():
    assert make_mini.missing_scales({0.95: -1.0, 1.0: -1.1, 1.05: -1.0}) == []


@pytest.mark.parametrize(
    ("energies", "expected"),
    [
        ({0.95: -1.2, 1.0: -1.1, 1.05: -1.0}, [0.9]),
        ({0.95: -1.0, 1.0: -1.1, 1.05: -1.2}, [1.1]),
        ({0.95: None, 1.0: -1.1, 1.05: -1.2}, [1.1]),
        ({1.0: -1.1}, [0.95, 1.05]),
        ({0.9: -1.3, 0.95: -1.2, 1.0: -1.1, 1.05: -1.0}, [0.85]),
    ],
)
def test_the_next_points_surround_the_lowest(energies, expected):
    assert make_mini.missing_scales(energies) == expected


@pytest.mark.parametrize(
    ("energies", "reason"),
    [
        ({0.95: None, 1.0: None, 1.05: None}, "no calculation gave an energy"),
        ({0.95: None, 1.0: -1.1, 1.05: -1.0}, "no energy at 0.95"),
        ({0.95: -1.2, 1.0: -1.1, 1.05: -1.0}, "outside 0.95 to 1.05"),
        ({0.95: -1.1 + 1e-6, 1.0: -1.1, 1.05: -1.1 + 1e-6}, "less than 2e-05 Ry"),
    ],
)
def test_a_fit_that_is_none_says_why(energies, reason):
    with pytest.raises(make_mini.FitError, match=reason):
        make_mini.fit_minimum(energies)


def test_only_the_neighbours_of_the_lowest_point_count():
    energies = {s: birch_murnaghan(s, 0.91) for s in (0.85, 0.9, 0.95, 1.0, 1.05)}
    energies[1.05] = 0.0  # another phase, far away
    fit = make_mini.fit_minimum(energies)
    assert fit.scale == pytest.approx(0.91, abs=1e-6)
    assert fit.points == 5


class Curves:
    """Stands for pw.x: an energy curve for each crystal by its estimated volume."""

    def __init__(self, crystals, minima, failing=()):
        self.volumes = {
            c.structure().composition.reduced_formula: c.structure().volume for c in crystals
        }
        self.minima, self.failing, self.calls = minima, failing, []

    def label(self, structures, oracle, *, workers, progress):
        return [self.answer(structure) for structure in structures]

    def answer(self, structure):
        formula = structure.composition.reduced_formula
        scale = round((structure.volume / self.volumes[formula]) ** (1 / 3), 4)
        self.calls.append((formula, scale))
        if (formula, scale) in self.failing:
            return Properties(status=Status.NOT_CONVERGED, provenance="pw.x 6.7: it did not")
        return Properties(total_energy_ry=birch_murnaghan(scale, self.minima[formula]))


@pytest.fixture
def three(by_name):
    return [by_name[n] for n in ("MgTe-zincblende", "CsF-caesium-chloride", "SrZrO3-perovskite")]


def test_volumes_are_fitted_in_common_rounds(three, monkeypatch):
    curves = Curves(three, {"MgTe": 1.02, "CsF": 1.07, "SrZrO3": 0.87})
    monkeypatch.setattr(make_mini, "label", curves.label)
    fits, problems = make_mini.fit_volumes(three, None, 2)
    assert problems == {}
    found = {name: fit.scale for name, fit in fits.items()}
    assert found == pytest.approx(
        {"MgTe-zincblende": 1.02, "CsF-caesium-chloride": 1.07, "SrZrO3-perovskite": 0.87},
        abs=2e-4,  # the stand-in rounds its scales
    )
    calls = Counter(formula for formula, _ in curves.calls)
    assert calls == {"MgTe": 3, "CsF": 4, "SrZrO3": 6}


def test_a_fit_gives_up_by_name(three, monkeypatch):
    curves = Curves(three, {"MgTe": 1.0, "CsF": 1.5, "SrZrO3": 1.0}, failing={("MgTe", 0.95)})
    monkeypatch.setattr(make_mini, "label", curves.label)
    fits, problems = make_mini.fit_volumes(three, None, 2)
    assert list(fits) == ["SrZrO3-perovskite"]
    assert problems["CsF-caesium-chloride"].startswith("the minimum lies outside 0.95 to 1.20")
    assert problems["MgTe-zincblende"] == (
        "there is no energy at 0.95 of the estimated lattice constant "
        "(at 0.95: not_converged, pw.x 6.7: it did not)"
    )


# --------------------------------------------------------------------------- the file


@pytest.fixture
def fitted(by_name):
    fit = make_mini.Fit(1.0203, 4)
    return make_mini.final_crystal(by_name["CdF2-rutile"], fit, "pw.x 6.7 preset fast")


def test_a_fitted_cell_says_how(fitted, by_name):
    a, c = (1.0203 * value for _, value in by_name["CdF2-rutile"].parameters[:2])
    assert fitted.lattice_source == (
        f"energy-volume fit, pw.x 6.7 preset fast: a = {round(a, 4)} Å, c = {round(c, 4)} Å, "
        "u = 0.303"
    )
    assert not fitted.needs_fit
    assert fitted.structure().lattice.a == pytest.approx(a, abs=1e-6)


def test_measured_cells_stay_as_they_are(by_name):
    crystal = by_name["LiF-rocksalt"]
    assert make_mini.final_crystal(crystal, None, "") == crystal


def test_rounding_keeps_symmetry(one_of_each):
    for candidate in one_of_each:
        final = make_mini.final_crystal(candidate, make_mini.Fit(1.012345, 3), "")
        exact, rounded = (np.array(c.lattice).T for c in (candidate, final))
        assert np.abs(rounded - 1.012345 * exact).max() <= 5.1e-7
        for rotation in symmetry(candidate).rotations:
            cartesian = exact @ rotation @ np.linalg.inv(exact)
            left = np.linalg.inv(rounded) @ cartesian @ rounded - rotation
            # pw.x takes a rotation for a symmetry of the lattice if these are below 1e-6.
            assert np.abs(left).max() < 7e-7, candidate.name


GOOD = Properties(
    total_energy_ry=-123.4,
    formation_energy_ev_per_atom=-2.123456789123,
    band_gap_ev=3.21,
    provenance="pw.x 6.7, 30/240 Ry (stored)",
    wall_s=12.345,
    details={"n_bands": 64, "n_electrons": 40, "homo_ev": 1.0, "lumo_ev": 4.21, "n_iterations": 9},
)
BAD = Properties(status=Status.NOT_CONVERGED, provenance="pw.x 6.7: it did not (stored)")


def stand_in():
    files = {e: SimpleNamespace(file=f"{e}.upf", md5=f"md5 of {e}") for e in ("Cd", "F", "Li")}
    return SimpleNamespace(version="6.7", settings=PRESETS["labels"], pseudopotentials=files)


def test_the_file_can_be_read_again(fitted, by_name, tmp_path):
    lithium = by_name["LiF-rocksalt"]
    entries = [make_mini.make_entry(fitted, GOOD), make_mini.make_entry(lithium, BAD)]
    content = make_mini.make_content(stand_in(), entries, {"XY": "no"})
    make_mini.write(tmp_path / "mini.json", content)
    text = (tmp_path / "mini.json").read_text()
    read = json.loads(text)
    assert read == json.loads(json.dumps(content))
    assert read["code"] == "pw.x 6.7"
    assert read["settings"]["ecutwfc_ry"] == 30
    assert read["settings"]["n_bands"] == 64
    assert read["pseudopotentials"]["Li"] == {"file": "Li.upf", "md5": "md5 of Li"}
    assert read["left_out"] == {"XY": "no"}
    good, bad = read["entries"]
    assert (good["status"], good["reason"], good["nbnd"]) == ("ok", None, 64)
    assert good["formation_energy_ev_per_atom"] == -2.12345679
    assert good["wall_s"] == 12.35 or good["wall_s"] == 12.34
    assert (bad["status"], bad["reason"]) == ("not_converged", "pw.x 6.7: it did not")
    assert bad["total_energy_ry"] is None
    assert sum("LiF-rocksalt" in line for line in text.splitlines()) == 1


def test_a_number_that_json_has_no_word_for_is_refused(by_name):
    entry = make_mini.make_entry(by_name["LiF-rocksalt"], Properties(total_energy_ry=math.nan))
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_mini.dump(make_mini.make_content(stand_in(), [entry], {}))


def test_the_summary_counts(fitted, by_name):
    entries = [
        make_mini.make_entry(fitted, GOOD),
        make_mini.make_entry(by_name["LiF-rocksalt"], BAD),
    ]
    text = make_mini.summary(entries, {"XY": "no minimum"})
    assert "2 crystals in 2 structure types of 3 elements: 1 ok, 1 not_converged" in text
    assert "3 to 5: 1" in text
    assert "left out XY: no minimum" in text


# --------------------------------------------------------------------------- the command line


def test_unknown_names_are_refused(listed):
    with pytest.raises(ValueError, match="unknown crystals NaCl: see --list"):
        make_mini.select(listed, ["NaCl", "LiF-rocksalt"])
    assert [c.name for c in make_mini.select(listed, ["LiF-rocksalt"])] == ["LiF-rocksalt"]


def test_the_bundled_file_is_not_replaced_by_a_part(capsys):
    with pytest.raises(SystemExit):
        make_mini.parse_arguments(["--only", "LiF-rocksalt"])
    assert "--only needs --output" in capsys.readouterr().err


def test_errors_are_one_sentence(monkeypatch, capsys, listed):
    monkeypatch.setattr(make_mini, "candidates", lambda: listed)
    monkeypatch.setattr(make_mini, "prototypes", list)
    code = make_mini.main(["--only", "LiF-rocksalt", "--output", "x.json", "--pw", "no-such-pw.x"])
    assert code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: the program 'no-such-pw.x'")
    assert "\n" not in error


def test_the_list_can_be_printed(monkeypatch, capsys, listed):
    monkeypatch.setattr(make_mini, "candidates", lambda: listed)
    monkeypatch.setattr(make_mini, "prototypes", list)
    assert make_mini.main(["--list", "--only", "LiF-rocksalt"]) == 0
    assert capsys.readouterr().out.split() == (
        "LiF-rocksalt 2 sites experimental lattice constant, room temperature: a = 4.027 Å".split()
    )
