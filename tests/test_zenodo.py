"""`crystal_gym.datasets.zenodo`: the authors' trajectory files."""

import numpy as np
import pytest

from crystal_gym.datasets.zenodo import RELEASE_ELEMENTS, read_released_trajectories
from crystal_gym.elements import ELEMENTS

torch = pytest.importorskip("torch")

CRYSTALS = [
    # row, species in source order, traversal, (cell, space group), formation energy, gap
    (12, ["Na", "Cl"], [1, 0], [4.0, 4.0, 4.0, 60.0, 60.0, 60.0, 225], -1.8, 5.0),
    (
        907,
        ["Sr", "Ti", "O", "O", "O"],
        [2, 0, 1, 4, 3],
        [3.9, 3.9, 3.9, 90, 90, 90, 221],
        -3.4,
        1.7,
    ),
]


def one_hot(symbols, focus):
    features = torch.zeros(len(symbols), 90)
    for site, symbol in enumerate(symbols):
        column = 88 if symbol is None else RELEASE_ELEMENTS.index(symbol)
        features[site, column] = 1.0
    if focus is not None:
        features[focus, 89] = 1.0
    return features


def released(vectors=False):
    """Return the released layout for the crystals above."""
    data = {
        name: []
        for name in (
            "observations",
            "actions",
            "next_observations",
            "rewards",
            "bandgaps",
            "terminals",
        )
    }
    for row, species, traversal, laf, formation, gap in CRYSTALS:
        placed = [None] * len(species)
        for step, site in enumerate(traversal):
            last = step == len(traversal) - 1
            common = {"laf": torch.tensor(laf), "ind": row}
            data["observations"].append({"atomic_number": one_hot(placed, site), **common})
            number = RELEASE_ELEMENTS.index(species[site])
            action = torch.nn.functional.one_hot(torch.tensor(number), 88) if vectors else number
            data["actions"].append(action)
            placed[site] = species[site]
            following = None if last else traversal[step + 1]
            data["next_observations"].append(
                {"atomic_number": one_hot(placed, following), **common}
            )
            data["rewards"].append(formation if last else 0.0)
            data["terminals"].append(last)
        data["bandgaps"].append(gap)
    return data


def save(tmp_path, data):
    torch.save(data, tmp_path / "x.pt")
    return tmp_path / "x.pt"


@pytest.mark.parametrize("vectors", [False, True], ids=["numbers", "one-hot actions"])
def test_episodes_of_the_released_layout_are_read(tmp_path, vectors):
    episodes = read_released_trajectories(save(tmp_path, released(vectors)))
    assert len(episodes) == len(CRYSTALS)
    for episode, (row, species, traversal, laf, formation, gap) in zip(
        episodes, CRYSTALS, strict=True
    ):
        assert episode.row == row
        assert episode.traversal.tolist() == traversal
        assert [ELEMENTS[a] for a in episode.actions] == [species[s] for s in traversal]
        np.testing.assert_allclose(episode.lattice_parameters, laf[:6], rtol=1e-6)
        assert episode.space_group_number == laf[6]
        assert episode.formation_energy_ev_per_atom == formation
        assert episode.band_gap_ev == gap


def test_the_released_numbering_has_each_element_once():
    assert sorted(RELEASE_ELEMENTS) == sorted(ELEMENTS)


class _Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    path = save(tmp_path, {**released(), "observations": _Runs(marker)})
    with pytest.raises(ValueError, match=r"x\.pt is refused"):
        read_released_trajectories(path)
    assert not marker.exists()


def test_a_plain_pickle_with_code_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "x.pt"
    path.write_bytes(b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"x\.pt is refused"):
        read_released_trajectories(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path, kind):
    path = save(tmp_path, released())
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "garbage": b"hello", "empty": b""}[kind]
    )
    with pytest.raises(ValueError, match=r"x\.pt is refused .*fetch it again"):
        read_released_trajectories(path)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_released_trajectories(tmp_path / "none.pt")


@pytest.mark.parametrize("data", [[1, 2], {"observations": []}, 3], ids=str)
def test_another_layout_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="has another layout .*expected a dictionary with"):
        read_released_trajectories(save(tmp_path, data))


def test_a_file_that_ends_inside_an_episode_is_refused(tmp_path):
    data = released()
    data["terminals"][-1] = False
    with pytest.raises(ValueError, match="breaks off inside an episode"):
        read_released_trajectories(save(tmp_path, data))


def without(key):
    data = released()
    for observation in data["observations"]:
        del observation[key]
    return data


def with_fewer_gaps():
    data = released()
    data["bandgaps"].pop()
    return data


def with_fewer_terminals():
    data = released()
    del data["terminals"][2:]
    return data


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: without("ind"), id="no row"),
        pytest.param(lambda: without("laf"), id="no cell"),
        pytest.param(lambda: without("atomic_number"), id="no sites"),
        with_fewer_gaps,
        with_fewer_terminals,
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_name(tmp_path, make):
    with pytest.raises(ValueError, match=r"x\.pt"):
        read_released_trajectories(save(tmp_path, make()))
