"""`crystal_gym.datasets.minari_io` and `build`: datasets on disk, read with stock Minari."""

import errno
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import h5py
import minari
import numpy as np
import pytest
from made_crystals import NAMES, STRUCTURES, cif_text, eqn_7, species_in
from pymatgen.analysis.local_env import CrystalNN
from pymatgen.core import Element, Structure

from crystal_gym.cli import main
from crystal_gym.datasets import minari_io
from crystal_gym.datasets.build import build_mini, build_mp20, labelled_table
from crystal_gym.datasets.minari_io import load_trajectories, read_trajectories, write_dataset
from crystal_gym.datasets.trajectories import plan_trajectories
from crystal_gym.elements import ELEMENTS
from crystal_gym.envs.observations import make_form
from crystal_gym.oracles import load_table
from crystal_gym.sets import dataset_dir, load_skeletons
from crystal_gym.structures import cell_from_structure, parse_cif

METADATA = {
    "material_id",
    "band_gap_ev",
    "formation_energy_ev_per_atom",
    "total_energy_ry",
    "traversal",
    "lattice",
    "frac_coords",
    "space_group_number",
    "edge_index",
    "edge_image",
    "edge_length",
}  # DESIGN.md, section 5


def options_dict(dataset, episode):
    """Return the metadata that Minari keeps under ``options``, however it nests them."""
    (metadata,) = dataset.storage.get_episode_metadata([episode])
    flat = {key.removeprefix("options/"): value for key, value in metadata.items()}
    return {**flat, **flat.get("options", {})}


# -- what stock Minari sees ---------------------------------------------------------------------


def test_minari_lists_the_dataset(made_dataset):
    assert made_dataset.id in minari.list_local_datasets()


def test_minari_counts_episodes_and_steps(made_dataset, trajectories):
    assert made_dataset.total_episodes == len(trajectories)
    assert made_dataset.total_steps == len(trajectories.actions)


def test_an_episode_has_one_observation_more_than_actions(made_dataset):
    for episode in made_dataset.iterate_episodes():
        count = len(episode.actions)
        assert all(len(v) == count + 1 for v in episode.observations.values())
        assert len(episode.rewards) == len(episode.terminations) == count


def test_only_the_last_step_terminates_and_none_is_truncated(made_dataset):
    for episode in made_dataset.iterate_episodes():
        assert episode.terminations.tolist() == [False] * (len(episode.actions) - 1) + [True]
        assert not episode.truncations.any()


def test_stored_observations_are_in_the_stored_space(made_dataset):
    for episode in made_dataset.iterate_episodes([0, 7, 20]):
        for step in range(len(episode.actions) + 1):
            observation = {key: value[step] for key, value in episode.observations.items()}
            assert made_dataset.observation_space.contains(observation)


def test_stored_rewards_are_eqn_7_at_3_ev(made_dataset):
    for number, episode in enumerate(made_dataset.iterate_episodes()):
        options = options_dict(made_dataset, number)
        expected = eqn_7(options["formation_energy_ev_per_atom"], options["band_gap_ev"], 3.0)
        assert not episode.rewards[:-1].any()
        assert episode.rewards[-1] == pytest.approx(expected, rel=0, abs=1e-12)


def test_an_episode_can_be_printed(made_dataset):
    assert "EpisodeData" in repr(made_dataset[0])


def test_episodes_can_be_filtered_and_sampled(made_dataset):
    long = made_dataset.filter_episodes(lambda episode: len(episode.actions) > 4)
    assert 0 < long.total_episodes < made_dataset.total_episodes
    assert len(made_dataset.sample_episodes(3)) == 3


@pytest.mark.parametrize("command", [["list", "local"], ["show"]])
def test_the_command_line_of_minari_shows_the_dataset(made_dataset, command):
    pytest.importorskip("typer")
    words = [*command, made_dataset.id] if command == ["show"] else command
    done = subprocess.run(
        [sys.executable, "-m", "minari.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert made_dataset.id in done.stdout


# -- replay -------------------------------------------------------------------------------------


def assert_replays(dataset, episodes):
    env = dataset.recover_environment()
    for number in episodes:
        episode = dataset[number]
        options = {
            "skeleton": int(episode.observations["skeleton"][0, 0]),
            "start_site": int(episode.observations["focus"][0, 0]),
        }
        observation, _ = env.reset(seed=0, options=options)
        for step in range(len(episode.actions) + 1):
            for key, value in episode.observations.items():
                np.testing.assert_array_equal(observation[key], value[step], err_msg=key)
            if step == len(episode.actions):
                break
            observation, reward, terminated, _, _ = env.step(episode.actions[step])
            assert reward == pytest.approx(episode.rewards[step], rel=0, abs=1e-12)
            assert terminated == episode.terminations[step]


def test_every_episode_replays_through_the_recovered_environment(made_dataset):
    assert_replays(made_dataset, range(made_dataset.total_episodes))


def test_the_recovered_environment_has_the_stored_spaces(made_dataset):
    env = made_dataset.recover_environment()
    assert env.observation_space == made_dataset.observation_space
    assert env.action_space == made_dataset.action_space
    assert env.unwrapped.spec.kwargs["target_gap"] == 3.0


@pytest.mark.data
def test_five_orders_of_a_real_crystal_replay_to_their_stored_rewards(
    data_dir, train_labels, empty_minari
):
    (report,) = build_mp20(data_dir, splits=("train",), limit=1, workers=1)
    dataset = minari.load_dataset(report.dataset_id)
    label = train_labels[0]
    assert report.crystals == 1
    assert dataset.total_episodes == report.episodes == 5
    assert_replays(dataset, range(5))
    expected = eqn_7(label.formation_energy_ev_per_atom, label.band_gap_ev, 3.0)
    for episode in dataset.iterate_episodes():
        assert episode.rewards[-1] == pytest.approx(expected, rel=0, abs=1e-9)
    starts = {int(e.observations["focus"][0, 0]) for e in dataset.iterate_episodes()}
    assert len(starts) == 5


# -- metadata -----------------------------------------------------------------------------------


def test_episode_metadata_have_the_names_of_the_design(made_dataset):
    with h5py.File(Path(made_dataset.storage.data_path) / "main_data.hdf5") as file:
        for number in range(made_dataset.total_episodes):
            names = set(file[f"episode_{number}"].attrs)
            assert names == {"id", "total_steps"} | {f"options/{name}" for name in METADATA}


def test_graphs_can_be_rebuilt_from_the_metadata_without_this_package(made_dataset):
    path = Path(made_dataset.storage.data_path) / "main_data.hdf5"
    code = """
        import sys, h5py, numpy as np
        with h5py.File(sys.argv[1]) as file:
            for group in file.values():
                about = {k.split("/")[-1]: v for k, v in group.attrs.items()}
                source, target = about["edge_index"].astype(int)
                ends = about["frac_coords"][target] + about["edge_image"]
                vectors = (ends - about["frac_coords"][source]) @ about["lattice"]
                length = np.linalg.norm(vectors, axis=1)
                assert np.allclose(length, about["edge_length"], rtol=0, atol=1e-5)
                assert sorted(about["traversal"]) == list(range(len(about["frac_coords"])))
                order = group["observations/focus"][:-1, 0]
                assert (order == about["traversal"]).all()
        assert "crystal_gym" not in sys.modules
        print(len(vectors))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_graph_in_the_metadata_is_that_of_pymatgen(made_dataset):
    finder = CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)
    seen = set()
    for number in range(made_dataset.total_episodes):
        about = options_dict(made_dataset, number)
        if about["material_id"] in seen:
            continue
        seen.add(about["material_id"])
        sites = about["frac_coords"]
        structure = Structure(about["lattice"], ["H"] * len(sites), sites)
        expected = set()
        for source in range(len(sites)):
            for near in finder.get_nn_info(structure, source):
                image = tuple(int(x) for x in near["image"])
                target = near["site_index"]
                expected.add((source, target, *image))
                expected.add((target, source, *(-x for x in image)))
        found = np.column_stack([np.asarray(about["edge_index"]).T, about["edge_image"]])
        assert set(map(tuple, found.tolist())) == expected
    assert seen == set(NAMES)


def test_a_finished_crystal_can_be_rebuilt_from_an_episode(made_dataset):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    about, episode = options_dict(made_dataset, 0), made_dataset[0]
    species = np.empty(len(episode.actions), dtype=object)
    species[np.asarray(about["traversal"])] = [ELEMENTS[a] for a in episode.actions]
    structure = Structure(about["lattice"], [Element(s) for s in species], about["frac_coords"])
    assert StructureMatcher().fit(structure, STRUCTURES[about["material_id"]])


# -- reading back -------------------------------------------------------------------------------


COLUMNS = (
    "skeleton",
    "step_ptr",
    "traversal",
    "actions",
    "total_energy_ry",
    "formation_energy_ev_per_atom",
    "band_gap_ev",
)


def assert_same_trajectories(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert one.skeletons.table_id == other.skeletons.table_id


def without_columns(folder):
    (folder / "trajectories.npz").unlink()


def with_half_columns(folder):
    whole = (folder / "trajectories.npz").read_bytes()
    (folder / "trajectories.npz").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "change",
    [lambda folder: None, without_columns, with_half_columns],
    ids=["as written", "no columns", "half columns"],
)
def test_read_trajectories_are_those_written(empty_minari, card, table, trajectories, change):
    change(write_dataset(card("crystal-read-v0"), trajectories, table))
    again = read_trajectories(minari.load_dataset("crystal-read-v0"))
    assert_same_trajectories(again, trajectories)


def test_a_changed_hdf5_file_is_read_itself(empty_minari, card, table, trajectories):
    folder = write_dataset(card("crystal-read-v0"), trajectories, table)
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        file["episode_3"].attrs["options/band_gap_ev"] = 77.0
    again = read_trajectories(minari.load_dataset("crystal-read-v0"))
    assert again.band_gap_ev[3] == 77.0


def test_columns_of_a_copied_dataset_are_used(empty_minari, card, table, trajectories, monkeypatch):
    """A copy is younger than its note says: its checksum decides."""
    folder = write_dataset(card("crystal-read-v0"), trajectories, table)
    os.utime(folder / "main_data.hdf5")
    monkeypatch.setattr("crystal_gym.datasets.minari_io._read_episodes", None)
    again = read_trajectories(minari.load_dataset("crystal-read-v0"))
    assert_same_trajectories(again, trajectories)


def test_an_unchanged_hdf5_file_is_not_read(empty_minari, card, table, trajectories, monkeypatch):
    write_dataset(card("crystal-read-v0"), trajectories, table)
    monkeypatch.setattr("crystal_gym.datasets.minari_io.sha256_of", None)
    again = read_trajectories(minari.load_dataset("crystal-read-v0"))
    assert_same_trajectories(again, trajectories)


def test_a_filtered_dataset_reads_only_its_episodes(made_dataset, trajectories):
    some = made_dataset.filter_episodes(lambda episode: len(episode.actions) == 2)
    again = read_trajectories(some)
    assert len(again) == np.count_nonzero(np.diff(trajectories.step_ptr) == 2)
    assert set(np.diff(again.step_ptr)) == {2}


def test_a_dataset_of_another_form_is_refused(made_set):
    space = make_form("packed", made_set, conditional=True).space
    dataset = SimpleNamespace(id="packed-v0", observation_space=space)
    with pytest.raises(ValueError, match="packed-v0 does not hold compact observations"):
        read_trajectories(dataset)


# -- datasets from elsewhere ----------------------------------------------------------------------


def spec_that_runs(marker):
    return json.dumps(
        {
            "id": "CrystalFill-v0",
            "entry_point": "subprocess:check_call",
            "kwargs": {"args": ["touch", str(marker)]},
            "additional_wrappers": [],
            **dict.fromkeys(("reward_threshold", "max_episode_steps", "vector_entry_point")),
            **dict.fromkeys(("nondeterministic", "disable_env_checker"), False),
            "order_enforce": True,
        }
    )


@pytest.fixture
def hostile(empty_minari, card, table, trajectories):
    """Return a function that changes the metadata of a dataset, and its folder."""
    folder = write_dataset(card("crystal-hostile-v0"), trajectories, table)

    def change(**changes):
        path = folder / "metadata.json"
        metadata = {**json.loads(path.read_text()), **changes}
        metadata = {k: v for k, v in metadata.items() if v is not ...}
        path.write_text(json.dumps(metadata))

    return change, folder


@pytest.mark.parametrize("spaces", [{}, {"observation_space": ...}], ids=["spaces", "no space"])
def test_the_environment_that_a_dataset_names_is_not_run(hostile, tmp_path, spaces):
    change, folder = hostile
    change(env_spec=spec_that_runs(tmp_path / "owned"), **spaces)
    (folder / "skeletons.npz").unlink()
    with pytest.raises(ValueError, match=r"cannot be used \("):
        load_trajectories("crystal-hostile-v0")
    assert not (tmp_path / "owned").exists()
    with pytest.raises(TypeError):  # Minari alone runs it: what is tested here is no dead letter
        minari.load_dataset("crystal-hostile-v0").recover_environment()
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_format": "arrow"}, "its format is 'arrow'"),
        ({"total_episodes": 10**12}, "its total_episodes is 1000000000000"),
        ({"total_steps": -1}, "its total_steps is -1"),
        ({"action_space": 3}, "its action_space is no text"),
        ({"action_space": '{"type": "Box", "shape": [1000000000000]}'}, "dtype"),
        ({"observation_space": "[" * 100_000}, "recursion"),
        ({"minari_version": "99"}, "does not support"),
        ({"env_spec": "{}"}, "entry_point"),
        ({"dataset_id": ...}, "dataset_id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_of_no_dataset_are_refused_in_one_sentence(hostile, changes, expected):
    change, _ = hostile
    change(**changes)
    with pytest.raises(ValueError, match=rf"cannot be used \(.*{expected}") as error:
        minari_io.open_dataset("crystal-hostile-v0")
    assert "\n" not in str(error.value)


def huge(group):
    del group["actions"]
    group.create_dataset("actions", shape=(10**12,), dtype="i8", chunks=(1024,))


def elsewhere(group):
    del group["actions"]
    group["actions"] = h5py.ExternalLink("/dev/zero", "/x")


def outside(group):
    del group["actions"]
    group.create_dataset("actions", (2,), "i8", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


def no_group(group):
    del group["observations"]
    group["observations"] = 3


def wrong_site(group):
    group["observations/focus"][0, 0] = 77


def wrong_skeleton(group):
    group["observations/skeleton"][...] = 3000


def no_number(group):
    group.attrs["options/band_gap_ev"] = "wide"


@pytest.mark.parametrize(
    "change", [huge, elsewhere, outside, no_group, wrong_site, wrong_skeleton, no_number]
)
def test_a_hostile_episode_is_refused(hostile, change):
    _, folder = hostile
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        change(file["episode_2"])
    with pytest.raises(ValueError, match=r"crystal-hostile-v0 cannot be read \("):
        load_trajectories("crystal-hostile-v0")


@pytest.mark.parametrize("dataset_id", ["../../x-v0", "/tmp/x-v0", "a/../../b-v0", "x", ""])
def test_a_dataset_id_does_not_lead_out_of_its_folder(dataset_id):
    with pytest.raises(ValueError, match="is not of Minari's form"):
        dataset_dir(dataset_id)


def test_the_name_of_a_set_is_answered_with_the_id_of_its_dataset():
    with pytest.raises(ValueError, match="and a version, such as crystal-mp20-v0$"):
        dataset_dir("mp20")


# -- whole or not at all ------------------------------------------------------------------------


@pytest.fixture
def old(empty_minari, card, table, trajectories):
    """Return a dataset that is there already, and the bytes of its files."""
    folder = write_dataset(card("crystal-old-v0"), trajectories, table)
    return folder, contents(folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def assert_untouched(old, empty_minari):
    folder, before = old
    assert contents(folder) == before
    assert os.listdir(empty_minari) == ["crystal-old-v0"]
    assert list(minari.list_local_datasets()) == ["crystal-old-v0"]


@pytest.mark.parametrize("where", ["first episode", "middle", "skeletons", "metadata"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_a_write_that_fails_leaves_the_old_dataset_and_nothing_else(
    old, empty_minari, card, table, trajectories, monkeypatch, where, error
):
    def fail(*args, **kwargs):
        raise error

    if where == "skeletons":
        monkeypatch.setattr(type(table.skeletons), "save", fail)
    elif where == "metadata":
        monkeypatch.setattr(minari_io.MinariStorage, "update_metadata", fail)
    else:
        real = minari_io._EpisodeWriter.write
        last = 0 if where == "first episode" else len(trajectories) // 2

        def write(self, episode, reward):
            return fail() if episode == last else real(self, episode, reward)

        monkeypatch.setattr(minari_io._EpisodeWriter, "write", write)
    with pytest.raises(type(error)):
        write_dataset(card("crystal-old-v0"), trajectories, table)
    assert_untouched(old, empty_minari)


def test_a_full_disk_leaves_the_old_dataset_and_says_so(old, empty_minari):
    code = """
        import resource, sys
        from crystal_gym.datasets.build import build_mini
        from crystal_gym.datasets.minari_io import DatasetCard, write_dataset
        from crystal_gym.datasets.trajectories import plan_trajectories
        from crystal_gym.oracles import load_table
        table = load_table("mini")
        plan = plan_trajectories(table)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        try:
            write_dataset(DatasetCard("crystal-old-v0", "mini", "x"), plan, table)
        except OSError as error:
            print("refused:", error)
            sys.exit(0)
        sys.exit("written")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert_untouched(old, empty_minari)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused:" in done.stdout


def test_the_leftover_of_a_killed_build_is_cleaned_up(old, empty_minari, card, table, trajectories):
    leftover = empty_minari / ".crystal-old-v0.building" / "data"
    leftover.mkdir(parents=True)
    (leftover / "main_data.hdf5").write_bytes(b"half")
    assert list(minari.list_local_datasets()) == ["crystal-old-v0"]
    write_dataset(card("crystal-old-v0"), trajectories, table)
    assert os.listdir(empty_minari) == ["crystal-old-v0"]
    assert minari.load_dataset("crystal-old-v0").total_episodes == len(trajectories)


def test_a_really_killed_build_leaves_the_old_dataset(old, empty_minari):
    code = """
        import os, signal
        from crystal_gym.datasets import minari_io
        from crystal_gym.datasets.trajectories import plan_trajectories
        from crystal_gym.oracles import load_table
        def kill(self, episode, reward):
            os.kill(os.getpid(), signal.SIGKILL)
        minari_io._EpisodeWriter.write = kill
        table = load_table("mini")
        card = minari_io.DatasetCard("crystal-old-v0", "mini", "x")
        minari_io.write_dataset(card, plan_trajectories(table), table)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -9
    folder, before = old
    assert contents(folder) == before
    assert list(minari.list_local_datasets()) == ["crystal-old-v0"]


def test_a_rename_that_fails_puts_the_old_dataset_back(
    old, empty_minari, card, table, trajectories, monkeypatch
):
    real = Path.rename

    def rename(self, target):
        if self.name.endswith(".building"):
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Permission denied"):
        write_dataset(card("crystal-old-v0"), trajectories, table)
    assert_untouched(old, empty_minari)


def test_an_old_dataset_set_aside_by_a_killed_build_survives_a_failing_one(
    old, empty_minari, card, table, trajectories, monkeypatch
):
    folder, before = old
    # Killed between the two renames: the old one is aside, the new one not yet in its place.
    folder.parent.rename(empty_minari / ".crystal-old-v0.building-old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(minari_io._EpisodeWriter, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(card("crystal-old-v0"), trajectories, table)
    copies = [p for p in empty_minari.rglob("data") if p.is_dir() and contents(p) == before]
    assert copies


def test_a_new_build_replaces_the_old_dataset(old, empty_minari, card, table):
    fewer = plan_trajectories(table, max_orders=1)
    write_dataset(card("crystal-old-v0"), fewer, table)
    assert minari.load_dataset("crystal-old-v0").total_episodes == len(fewer)
    assert os.listdir(empty_minari) == ["crystal-old-v0"]


# -- building -----------------------------------------------------------------------------------


@pytest.fixture
def written_rows():
    """Return rows and labels of three made crystals."""
    rows = [{"cif": cif_text(STRUCTURES[name])} for name in ("rocksalt", "layered", "triclinic")]
    labels = [
        ("train", 0, 5.0, -100.5, -2.0),
        ("train", 2, 1.25, -300.25, -1.5),
        ("val", 1, 0.75, -200.125, -0.5),
    ]
    return rows, labels


def test_a_source_folder_becomes_both_datasets(source_folder, written_rows, empty_minari):
    folder = source_folder(*written_rows)
    train, val = build_mp20(folder, workers=1)
    assert (train.crystals, train.episodes, train.transitions) == (2, 2 + 5, 2 * 2 + 5 * 6)
    assert (val.crystals, val.episodes, val.transitions) == (1, 1, 6)
    assert sorted(minari.list_local_datasets()) == ["crystal-mp20-v0", "crystal-mp20-val-v0"]
    dataset = minari.load_dataset("crystal-mp20-val-v0")
    assert dataset[0].rewards[-1] == pytest.approx(
        math.exp(0.1) + 10 * math.exp(-(2.25**2) / 3), abs=1e-12
    )
    assert_replays(dataset, [0])


def test_labels_meet_their_rows_by_position(source_folder, written_rows):
    table, problems = labelled_table(source_folder(*written_rows), "train", workers=1)
    assert problems == {}
    assert table.skeletons.n_sites.tolist() == [2, 6]
    assert table.band_gap_ev.tolist() == [5.0, 1.25]
    assert table.total_energy_ry.tolist() == [-100.5, -300.25]


def test_metals_become_a_table_that_is_known_by_name(
    source_folder, written_rows, empty_cache, capsys
):
    rows, labels = written_rows
    folder = source_folder(rows, labels[1:])
    with pytest.raises(ValueError, match="'mp20-metals' is not built.*data build mp20-metals"):
        load_table("mp20-metals")
    (folder / "qe" / "release").mkdir()
    metals = {0: (0.0, -8e3), 1: (0.0, -2.0)}
    (folder / "qe" / "release" / "TE_bg_dict_m.pkl").write_bytes(pickle.dumps(metals))
    assert main(["data", "build", "mp20-metals", "--from", str(folder)]) == 0
    assert "mp20-metals: 2 crystals with a gap of 0 and no energies" in capsys.readouterr().out
    table = load_table("mp20-metals")
    assert table.band_gap_ev.tolist() == [0.0, 0.0]
    assert np.isnan(table.formation_energy_ev_per_atom).all()
    assert len(load_skeletons("mp20-metals")) == 2
    assert main(["data", "list"]) == 0
    assert "mp20-metals" in capsys.readouterr().out


def test_a_broken_row_is_reported_by_its_number_and_the_others_are_kept(
    source_folder, written_rows, empty_minari
):
    rows, labels = written_rows
    rows = [{"material_id": f"mp-77{i}", **row} for i, row in enumerate(rows)]
    rows[2]["cif"] = rows[2]["cif"].replace("Ca", "Ar")
    (report,) = build_mp20(source_folder(rows, labels), splits=("train",), workers=1)
    assert report.crystals == 1
    assert "left out 1" in str(report)
    ((name, reason),) = report.problems.items()
    assert "Ar" in reason
    assert "2" in name.replace("mp-772", "") + reason.replace("mp-772", "")


def test_a_row_without_a_cif_is_reported_by_its_number(source_folder, written_rows):
    rows, labels = written_rows
    rows[0]["cif"] = ""
    _, problems = labelled_table(source_folder(rows, labels), "train", workers=1)
    assert list(problems) == ["train-0"]


def test_a_label_without_a_row_is_reported(source_folder, written_rows):
    rows, labels = written_rows
    folder = source_folder(rows, [*labels, ("train", 99, 1.0, -1.0, -1.0)])
    _, problems = labelled_table(folder, "train", workers=1)
    assert problems == {"train-99": "no such row in the CSV"}


def test_a_folder_without_the_files_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.csv does not exist .*data fetch"):
        build_mp20(tmp_path)


def test_the_bundled_set_builds_and_replays(empty_minari):
    report = build_mini()
    dataset = minari.load_dataset("crystal-mini-v0")
    assert dataset.total_episodes == report.episodes > 12
    assert_replays(dataset, range(0, report.episodes, 17))


@pytest.mark.data
def test_the_design_promises_the_numbers_of_the_published_labels(train_rows, train_labels):
    sites = np.array([len(species_in(train_rows[x.position].cif)) for x in train_labels])
    assert len(sites) == 8_813
    assert sites.sum() == 108_748
    assert np.minimum(sites, 5).sum() == 43_182
    assert (np.minimum(sites, 5) * sites).sum() == 541_032


@pytest.mark.data
def test_real_rows_keep_their_species(data_dir, train_rows, train_labels):
    table, problems = labelled_table(data_dir, "train", limit=4, workers=1)
    assert problems == {}
    for number, label in enumerate(train_labels[:4]):
        cell = cell_from_structure(parse_cif(train_rows[label.position].cif))
        np.testing.assert_array_equal(table.entry_tokens(number), cell.reference)
        assert table.band_gap_ev[number] == label.band_gap_ev


def test_a_second_build_waits_for_nobody_and_says_so(card, trajectories, table, empty_minari):
    from filelock import FileLock

    from crystal_gym.datasets.minari_io import lock_file

    with FileLock(lock_file(dataset_dir("crystal-twice-v0"))):
        with pytest.raises(ValueError, match="is being written by another process"):
            write_dataset(card("crystal-twice-v0"), trajectories, table)
    write_dataset(card("crystal-twice-v0"), trajectories, table)
    assert "crystal-twice-v0" in minari.list_local_datasets()


def test_the_same_data_give_the_same_bytes(card, trajectories, table, empty_minari):
    digests = set()
    for _ in range(2):
        folder = write_dataset(card("crystal-same-v0"), trajectories, table)
        digests.add(hashlib.sha256((folder / "main_data.hdf5").read_bytes()).hexdigest())
    assert len(digests) == 1
