"""The surrogate: training, calibration, files, and the oracle around it."""

from __future__ import annotations

import dataclasses
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import fluorite, perovskite, rocksalt, wurtzite
from pymatgen.core import Lattice, Structure

torch = pytest.importorskip("torch", reason="the surrogate needs the extra `agents`")

from crystal_gym.agents import rows_to_batch  # noqa: E402
from crystal_gym.agents.surrogate import (  # noqa: E402
    BUNDLED_SURROGATE,
    MemberOutput,
    Surrogate,
    _extent,
    electron_parity,
    in_eight_bits,
    load_surrogate,
    save_surrogate,
)
from crystal_gym.agents.surrogate_training import (  # noqa: E402
    LabelledCrystals,
    SurrogateConfig,
    _losses,
    train_surrogate,
)
from crystal_gym.cli import main  # noqa: E402
from crystal_gym.datasets.build import build_mini  # noqa: E402
from crystal_gym.datasets.replay import load_trajectories  # noqa: E402
from crystal_gym.elements import ELEMENTS  # noqa: E402
from crystal_gym.envs.observations import finished_rows  # noqa: E402
from crystal_gym.files import sha256_of  # noqa: E402
from crystal_gym.oracles import (  # noqa: E402
    CachedOracle,
    ChainOracle,
    Filling,
    FillingOracle,
    Status,
    SurrogateOracle,
    TableOracle,
    load_table,
)
from crystal_gym.oracles.references import formation_energy  # noqa: E402
from crystal_gym.sets import load_skeletons  # noqa: E402
from crystal_gym.skeletons import build_skeletons  # noqa: E402
from crystal_gym.structures import cell_from_structure, site_symbols  # noqa: E402

TINY = {
    "dataset": "crystal-mini-v0",
    "members": 2,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "batch_size": 64,
    "warmup": 10,
    "averaging": 0.9,
    "evaluate_every": 20,
}


@pytest.fixture(scope="module")
def mini(isolated_folders):
    build_mini()
    return load_trajectories("crystal-mini-v0")


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    scores = train_surrogate(SurrogateConfig(**TINY, steps=150), folder, progress=False)
    return folder, scores


def held_out(config, data):
    crystals = LabelledCrystals.of_trajectories(data)
    order = np.random.default_rng([config.seed, 0]).permutation(len(crystals))
    count = round(config.held_out * len(crystals))
    return crystals.subset(np.sort(order[:count])), crystals.subset(np.sort(order[count:]))


def test_training_beats_the_mean_on_crystals_not_learned_from(trained, mini):
    folder, scores = trained
    judged, learned = held_out(SurrogateConfig(**TINY), mini)
    surrogate, metadata = load_surrogate(folder)
    found = surrogate.predict(judged.rows)
    for values, labels, of_training, stated in (
        (found.band_gap_ev, judged.band_gap_ev, learned.band_gap_ev, scores.gap_mae_ev),
        (
            found.formation_energy_ev_per_atom,
            judged.formation_energy_ev_per_atom,
            learned.formation_energy_ev_per_atom,
            scores.energy_mae_ev_per_atom,
        ),
    ):
        error = np.abs(values - labels).mean()
        assert error == pytest.approx(stated, abs=1e-6)
        assert error < 0.75 * np.abs(np.median(of_training) - labels).mean()
    assert (found.band_gap_ev >= 0).all()
    assert metadata["held_out_crystals"] == len(judged)
    # Calibrated on these crystals: 68% of their errors are within one standard deviation.
    within = np.abs(found.band_gap_ev - judged.band_gap_ev) <= found.band_gap_std_ev
    assert within.mean() == pytest.approx(0.6827, abs=1.5 / len(judged))


def test_what_is_unknown_teaches_nothing():
    torch.manual_seed(0)
    said = [torch.randn(6, requires_grad=True) for _ in range(3)]
    scale = torch.randn(6, 2, requires_grad=True)

    def losses(rows, labels):
        metal, gap, energy = (x[rows] for x in said)
        return _losses(MemberOutput(torch.zeros(6, 1), metal, gap, energy, scale[rows]), labels)

    labels = torch.tensor([[0.0, -1.0], [2.0, -0.5], [0.0, 0.3]])
    every = torch.cat([labels, torch.tensor([[0.0, torch.nan]] * 3)])
    found = losses(slice(None), every)
    # The energy is that of the crystals that have one; the gap that of all.
    known, filled = losses(slice(3), labels), losses(slice(None), every.nan_to_num(0.0))
    torch.testing.assert_close(found["energy_loss"], known["energy_loss"])
    torch.testing.assert_close(found["gap_loss"], filled["gap_loss"])
    torch.testing.assert_close(found["metal_loss"], filled["metal_loss"])
    torch.stack(list(found.values())).sum().backward()
    assert said[2].grad[:3].abs().min() > 0
    assert (said[2].grad[3:] == 0).all()
    assert (scale.grad[3:, 1] == 0).all()
    assert all(x.grad.isfinite().all() for x in (*said, scale))


def metals_without_energies(folder):
    """Write a table of crystals with a gap of 0 and no energies, on skeletons of their own."""
    table = load_table("tabular")
    table = table.of_entries(np.arange(0, len(table), 40))
    unknown = np.full(len(table), np.nan)
    table = dataclasses.replace(
        table,
        band_gap_ev=np.zeros(len(table)),
        total_energy_ry=unknown,
        formation_energy_ev_per_atom=unknown,
        status=np.full(len(table), "ok"),
    )
    table.skeletons.save(folder / "skeletons.npz")
    table.save(folder / "table.npz")
    return len(table)


def test_a_table_is_learned_from_as_well(mini, trained, tmp_path):
    count = metals_without_energies(tmp_path)
    config = SurrogateConfig(**TINY, steps=150, tables=(str(tmp_path),))
    scores = train_surrogate(config, tmp_path / "run", progress=False)
    _, metadata = load_surrogate(tmp_path / "run")
    table = metadata["tables"][str(tmp_path)]
    assert table["training_crystals"] + table["held_out_crystals"] == count
    # Their kind has a gap in the dataset: only the table can have taught that it has none.
    crystals = LabelledCrystals.of_table(load_table(tmp_path))
    assert len(crystals) == count
    for folder, sure in ((tmp_path / "run", True), (trained[0], False)):
        surrogate, _ = load_surrogate(folder)
        share = (surrogate.predict(crystals.rows).metal_probability > 0.5).mean()
        assert (share > 0.6) == sure, share
    held_out = np.sort(
        np.random.default_rng([config.seed, 0]).permutation(count)[: table["held_out_crystals"]]
    )
    surrogate, _ = load_surrogate(tmp_path / "run")
    said = surrogate.predict(crystals.rows[held_out]).metal_probability > 0.5
    assert table["metal_accuracy"] == pytest.approx(said.mean())
    assert scores.energy_mae_ev_per_atom < 1.3 * trained[1].energy_mae_ev_per_atom


@pytest.mark.parametrize(
    ("species", "cells", "parity"),
    [
        (["Na", "Cl"], 1, 0),
        (["Na", "Cl"], 2, 0),
        (["Na", "O"], 1, 2),
        (["Na", "O"], 2, 1),  # as many electrons in a cell as NaO has in two
        (["H", "H"], 1, 1),
    ],
    ids=str,
)
def test_electrons_are_counted_in_the_cell_and_in_the_formula(species, cells, parity):
    structure = Structure(Lattice.cubic(4.2), species, [[0, 0, 0], [0.5, 0.5, 0.5]])
    structure.make_supercell([1, 1, cells])
    skeletons, _ = build_skeletons([cell_from_structure(structure)], workers=1)
    rows = finished_rows([skeletons[0]], [skeletons[0].reference])
    assert electron_parity(rows_to_batch(torch.from_numpy(rows))).tolist() == [parity]


def test_a_surrogate_can_learn_from_the_parity_of_electrons_alone():
    """Fillings of one cell whose elements are drawn alike in both classes: only the count tells."""
    surrogate = Surrogate(members=1, width=32, n_layers=1, heads=4)
    member = surrogate.members[0]
    skeletons, _ = build_skeletons([cell_from_structure(rocksalt("Na", "Cl"))], workers=1)
    tokens = np.random.default_rng(0).integers(1, 89, size=(600, 2)).astype(np.int16)
    torch.manual_seed(0)
    rows = torch.from_numpy(finished_rows([skeletons[0]] * 600, list(tokens)))
    odd = electron_parity(rows_to_batch(rows)) == 2
    optimizer = torch.optim.Adam(member.parameters(), lr=3e-3)
    for step in range(60):
        some = torch.arange(40) + 40 * (step % 10)
        logit = member(rows_to_batch(rows[some])).metal_logit
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, odd[some].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = member(rows_to_batch(rows[400:])).metal_logit > 0
    assert (said == odd[400:]).float().mean() > 0.95


def test_each_of_several_tables_is_learned_from(mini, tmp_path):
    count = metals_without_energies(tmp_path)
    tables = (str(tmp_path), "tabular")
    config = SurrogateConfig(**TINY | {"evaluate_every": 5}, steps=5, tables=tables)
    train_surrogate(config, tmp_path / "run", progress=False)
    told = load_surrogate(tmp_path / "run")[1]["tables"]
    sizes = [told[t]["training_crystals"] + told[t]["held_out_crystals"] for t in tables]
    assert sizes == [count, int((load_table("tabular").status == "ok").sum())]
    log = (tmp_path / "run" / "log.csv").read_text("utf-8").splitlines()
    for table in tables:
        assert f"metal_accuracy {table}" in log[0]
        accuracy = str(told[table]["metal_accuracy"])[:6]
        assert f",{accuracy}" in log[-1]


@pytest.mark.parametrize("tables", ["tabular", ("tabular", "tabular"), (1,)], ids=str)
def test_tables_that_are_no_list_of_names_are_refused(tables):
    with pytest.raises(ValueError, match="tables=.* is not usable: expected"):
        SurrogateConfig(tables=tables)


def test_a_table_that_is_not_there_is_named(mini, tmp_path):
    config = SurrogateConfig(**TINY, steps=10, tables=("no-such-table",))
    with pytest.raises(ValueError, match="'no-such-table' is neither a known table"):
        train_surrogate(config, tmp_path / "run", progress=False)


def test_an_interrupted_run_ends_with_the_same_weights(mini, tmp_path, monkeypatch):
    config = SurrogateConfig(**TINY, steps=40)
    train_surrogate(config, tmp_path / "whole", progress=False)
    calls = 0
    real = torch.nn.utils.clip_grad_norm_

    def clip(*args):
        nonlocal calls
        calls += 1
        if calls > 2 * 29:  # killed in step 30, after the evaluation at 20
            raise SystemExit
        return real(*args)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", clip)
    with pytest.raises(SystemExit):
        train_surrogate(config, tmp_path / "killed", progress=False)
    monkeypatch.undo()
    train_surrogate(config, tmp_path / "killed", progress=False)
    states = [
        torch.load(tmp_path / name / "surrogate" / "weights.pt", weights_only=True)
        for name in ("whole", "killed")
    ]
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "killed")]
    assert [row.split(",")[0] for row in logs[0]] == [row.split(",")[0] for row in logs[1]]
    with pytest.raises(ValueError, match="holds a run with steps=40, this one has 60"):
        train_surrogate(SurrogateConfig(**TINY, steps=60), tmp_path / "whole", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 0}, "members=0 is not usable: expected a whole number above 0"),
        ({"heads": 5}, "heads=5 is not usable: expected a divisor of width=96"),
        ({"held_out": 0.9}, "held_out=0.9 is not usable"),
        ({"steps": "many"}, "steps='many' is a str: expected a int"),
        ({"dropuot": 0.1}, r"setting 'dropuot' is unknown \(did you mean 'dropout'\?\): expected"),
    ],
)
def test_wrong_settings_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        SurrogateConfig.from_dict(changes)


def test_files_hold_no_pickles_and_come_back(trained, tmp_path):
    surrogate, metadata = load_surrogate(trained[0])
    save_surrogate(surrogate, tmp_path / "again", {"made": "here"})
    again, found = load_surrogate(tmp_path / "again")
    assert found["made"] == "here"
    for name, weight in surrogate.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert metadata["settings"]["dataset"] == "crystal-mini-v0"


def test_eight_bits_keep_what_is_said(trained, mini, tmp_path):
    surrogate, _ = load_surrogate(trained[0])
    folder = tmp_path / "small"
    save_surrogate(surrogate, folder)
    torch.save(in_eight_bits(surrogate.state_dict()), folder / "weights.pt")
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = sha256_of(folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(config))
    again, _ = load_surrogate(folder)
    rows = LabelledCrystals.of_trajectories(mini).rows
    found, exact = again.predict(rows), surrogate.predict(rows)
    for name, most in (("band_gap_ev", 0.1), ("formation_energy_ev_per_atom", 0.03)):
        change = np.abs(getattr(found, name) - getattr(exact, name))
        assert 0 < change.mean() < most, name
    np.testing.assert_allclose(found.band_gap_std_ev, exact.band_gap_std_ev, rtol=0.2)


def test_what_is_too_close_depends_on_the_elements(trained):
    batch = rows_to_batch(
        torch.from_numpy(
            finished_rows(
                [s := build_skeletons([cell_from_structure(rocksalt(a=5.64))])[0][0]] * 2,
                [s.reference, np.where(s.reference == s.reference[0], 1, 55).astype(np.int16)],
            )
        )
    )
    _, _, shortest, of_radii, of_volume = _extent(batch).T
    assert shortest[0] == pytest.approx(2.82, abs=1e-3)
    assert shortest[1] == shortest[0]
    # Cordero's radii: Na 1.66, Cl 1.02 Å; the cell of two atoms has a quarter of the cube.
    assert of_radii[0] == pytest.approx(2.82 / (1.66 + 1.02), rel=1e-4)
    assert of_volume[0] == pytest.approx(5.64**3 / 4 / (1.66**3 + 1.02**3), rel=1e-4)
    assert of_radii[1] != of_radii[0]


def test_damaged_files_are_explained(trained, tmp_path):
    surrogate, _ = load_surrogate(trained[0])
    for damage, message in (
        (lambda f: (f / "weights.pt").write_bytes(b"x" * 99), "is not the file that config.json"),
        (lambda f: (f / "config.json").write_text("{}"), "does not describe a surrogate"),
        (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    ):
        save_surrogate(surrogate, tmp_path / "s")
        damage(tmp_path / "s")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_surrogate(tmp_path / "s")
    save_surrogate(surrogate, tmp_path / "s")
    (tmp_path / "s" / "weights.pt").write_bytes(pickle.dumps(print, protocol=2))
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    config["weights_sha256"] = sha256_of(tmp_path / "s" / "weights.pt")
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="could run code"):
        load_surrogate(tmp_path / "s")


@pytest.fixture(scope="module")
def oracle():
    return SurrogateOracle()


def test_the_bundled_one_knows_common_crystals(oracle):
    structures = [rocksalt("Na", "Cl"), rocksalt("Mg", "O", a=4.25), perovskite(), fluorite()]
    salt, magnesia, perovskite_, fluorite_ = oracle.evaluate(structures)
    # PBE: NaCl 5.0, MgO 4.4, SrTiO3 1.8, CaF2 7.1 eV. Three or four of its standard deviations.
    for found, gap in ((salt, 5.0), (magnesia, 4.4), (perovskite_, 1.8), (fluorite_, 7.1)):
        assert found.status is Status.OK
        assert found.band_gap_ev == pytest.approx(gap, abs=0.9)
        assert 0.01 < found.details["band_gap_std_ev"] < 1.0
        assert found.formation_energy_ev_per_atom < -1.5
        assert found.details["metal_probability"] < 0.2
        assert found.details["training_distance"] < 1.2  # of CaF2, whose gap is large, 1.1
        assert found.details["unlike_training"] == (found is fluorite_)
        assert found.provenance.startswith("surrogate")
        assert "not DFT" in found.provenance
    energy = formation_energy(salt.total_energy_ry, ["Na", "Cl"])
    assert energy == pytest.approx(salt.formation_energy_ev_per_atom)


def test_the_bundled_one_against_our_own_labels(oracle):
    """354 crystals that it never saw, calculated with pw.x at the settings of its labels."""
    table = load_table("mini")
    entries = np.flatnonzero(table.status == Status.OK.value)
    found = oracle.evaluate_fillings(
        [
            Filling(table.skeletons[int(table.skeleton[e])], table.entry_tokens(e))
            for e in entries.tolist()
        ]
    )
    errors = np.abs([f.band_gap_ev for f in found] - table.band_gap_ev[entries])
    assert np.median(errors) < 0.35
    energies = np.array([f.formation_energy_ev_per_atom for f in found])
    of_energy = np.abs(energies - table.formation_energy_ev_per_atom[entries])
    assert np.nanmedian(of_energy) < 0.08
    # The warning is worth something: what it marks is wrong by more.
    unlike = np.array([f.details["unlike_training"] for f in found])
    assert 0 < unlike.mean() < 0.2
    assert errors[unlike].mean() > 2 * errors[~unlike].mean()


def test_what_is_unlike_the_training_data_is_said(oracle):
    squeezed = rocksalt(a=2.9)
    gas = Structure(Lattice.cubic(12), ["Kr", "Kr"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    large = wurtzite() * (3, 2, 2)
    for structure in (squeezed, gas, large):
        (found,) = oracle.evaluate([structure])
        assert found.details["unlike_training"], structure.formula
    bundled = load_skeletons("mini")
    some = [s for s in bundled if (s.reference > 0).all()][:100]
    found = oracle.evaluate_fillings([Filling(s, s.reference) for s in some])
    assert np.mean([f.details["unlike_training"] for f in found]) < 0.2


def test_numbering_cell_and_company_do_not_matter(oracle):
    structure = perovskite()
    other = Structure.from_sites(list(structure)[::-1])
    other.translate_sites(range(5), [0.3, 0.1, 0.7])
    alone, *together = [
        *oracle.evaluate([structure]),
        *oracle.evaluate([wurtzite(), other, rocksalt()]),
    ]
    assert together[1].band_gap_ev == pytest.approx(alone.band_gap_ev, abs=1e-4)
    assert together[1].details["band_gap_std_ev"] == pytest.approx(
        alone.details["band_gap_std_ev"], abs=1e-4
    )
    assert isinstance(oracle, FillingOracle)


def test_one_bad_structure_spoils_no_batch(oracle):
    overlapping = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.01]])
    mixed = Structure(Lattice.cubic(4.2), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0] * 3, [0.5] * 3])
    strange = Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])
    found = oracle.evaluate([overlapping, rocksalt(), strange, mixed])
    assert [f.status for f in found] == [
        Status.GEOMETRY,
        Status.OK,
        Status.UNSUPPORTED_ELEMENT,
        Status.GEOMETRY,  # though what is wrong with it speaks of elements
    ]
    assert "Po" in found[2].provenance
    assert oracle.evaluate([]) == []
    skeleton = load_skeletons("mini")[0]
    (unknown,) = oracle.evaluate_fillings([Filling(skeleton, np.zeros(skeleton.n_sites, int))])
    assert unknown.status is Status.UNKNOWN


def test_it_is_an_oracle_like_the_others(oracle, tmp_path):
    cached = CachedOracle(oracle, tmp_path / "c.db")
    first, second = (cached.evaluate([rocksalt()])[0] for _ in range(2))
    assert second.band_gap_ev == first.band_gap_ev
    chain = ChainOracle([TableOracle("mini"), oracle])
    skeletons = load_skeletons("mini")
    known = skeletons[0]
    other = np.full(known.n_sites, ELEMENTS.index("Xe") + 1)
    table, predicted = chain.evaluate_fillings(
        [Filling(known, known.reference), Filling(known, other)]
    )
    assert not table.provenance.startswith("surrogate")
    assert predicted.provenance.startswith("surrogate")
    env = gym.make("CrystalFill-v0", target_gap=3.0, oracle="surrogate")
    env.reset(seed=0, options={"skeleton": 3})
    done = False
    while not done:
        _, reward, done, _, info = env.step(ELEMENTS.index("O"))
    assert reward > 0
    assert info["provenance"].startswith("surrogate")
    assert site_symbols(env.unwrapped.structure()).count("O") == len(env.unwrapped.structure())


def test_the_path_of_a_run_names_its_oracle(trained):
    from crystal_gym.envs.crystal_fill import make_oracle

    for folder in (trained[0], trained[0] / "surrogate"):
        oracle = make_oracle(str(folder))
        assert isinstance(oracle, SurrogateOracle)
        assert oracle.evaluate([rocksalt()])[0].status is Status.OK
    with pytest.raises(ValueError, match="neither a known table nor an existing path"):
        make_oracle(str(trained[0].parent / "nothing"))


def test_the_bundled_files_are_small_and_have_a_card():
    files = list(BUNDLED_SURROGATE.iterdir())
    assert sum(f.stat().st_size for f in files) < 5_500_000
    assert max(f.stat().st_size for f in files) < 5_000_000
    card = (BUNDLED_SURROGATE / "README.md").read_text(encoding="utf-8")
    assert "make surrogate" in card
    assert "not DFT" in card
    surrogate, metadata = load_surrogate()
    assert isinstance(surrogate, Surrogate)
    assert metadata["settings"]["dataset"] == "crystal-mp20-v0"


def test_the_command_trains_and_says_how_good_it_is(mini, tmp_path, capsys):
    words = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    assert main(["train", "surrogate", *words, "--steps", "20", "-o", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "did not learn from" in " ".join(printed.split())
    assert (tmp_path / "run" / "surrogate" / "config.json").exists()
    assert main(["train", "bc", "--members", "2", "-o", str(tmp_path / "other")]) == 1
    assert "setting 'members' is unknown" in capsys.readouterr().err
