"""`crystal_gym.envs.observations`: four forms of one state."""

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import NAMES, play, random_choice

from crystal_gym.envs.observations import (
    COMPACT_HEADER,
    FORMS,
    MIN_ROW_SITES,
    PACKED_HEADER,
    PackedLayout,
    compact_rows,
    make_form,
    require_rows,
)

# Each decoder turns an observation into the same plain dictionary, by the documented layout only.


def facts(tokens, focus, edges, lattice, space_group, target):
    rows = sorted(tuple(np.asarray(e, dtype=np.float64).tolist()) for e in edges)
    return {
        "tokens": np.asarray(tokens, dtype=int).tolist(),
        "focus": int(focus),
        "edges": rows,
        "lattice": np.asarray(lattice, dtype=np.float64).tolist(),
        "space_group": int(space_group),
        "target": None if target is None else float(target),
    }


def flagged(flags, n_sites):
    found = np.flatnonzero(flags)
    assert len(found) <= 1
    return found[0] if len(found) else n_sites


def decode_graph(observation, skeletons):
    sites = observation["node_mask"].astype(bool)
    edges = observation["edge_mask"].astype(bool)
    assert not observation["element_tokens"][~sites].any()
    index = observation["edge_index"][:, edges]
    rows = np.column_stack(
        [index.T, observation["edge_image"][edges], observation["edge_length"][edges]]
    )
    target = observation.get("target_gap")
    return facts(
        observation["element_tokens"][sites],
        flagged(observation["focus"], sites.sum()),
        rows,
        observation["lattice"],
        observation["space_group"][0],
        None if target is None else target[0],
    )


def decode_packed(row, skeletons):
    head = dict(zip(PACKED_HEADER, row[: len(PACKED_HEADER)], strict=True))
    n_sites, n_edges, width = int(head["n_sites"]), int(head["n_edges"]), int(head["max_sites"])
    rest = row[len(PACKED_HEADER) :]
    tokens, rest = rest[:width], rest[width:]
    room = len(rest) // 6
    source, target, length = rest[:room], rest[room : 2 * room], rest[2 * room : 3 * room]
    image = rest[3 * room :].reshape(room, 3)
    rows = np.column_stack([source, target, image, length])
    assert not rows[n_edges:].any()
    assert not tokens[n_sites:].any()
    cell = [head[name] for name in ("a", "b", "c", "alpha", "beta", "gamma")]
    gap = head["target"] if head["conditional"] else None
    return facts(tokens[:n_sites], head["focus"], rows[:n_edges], cell, head["space_group"], gap)


def decode_compact(observation, skeletons):
    skeleton = skeletons[int(observation["skeleton"][0])]
    n_sites = skeleton.n_sites
    assert not observation["element_tokens"][n_sites:].any()
    rows = np.column_stack([skeleton.edge_index.T, skeleton.edge_image, skeleton.edge_length])
    target = observation.get("target_gap")
    return facts(
        observation["element_tokens"][:n_sites],
        observation["focus"][0],
        rows,
        skeleton.lattice_parameters.astype(np.float32),
        skeleton.space_group_number,
        None if target is None else target[0],
    )


def decode_space(graph, skeletons):
    nodes = graph.nodes
    rows = np.column_stack([graph.edge_links, graph.edges[:, 1:], graph.edges[:, 0]])
    assert (nodes[:, 2:] == nodes[0, 2:]).all()
    return facts(
        nodes[:, 0],
        flagged(nodes[:, 1], len(nodes)),
        rows,
        nodes[0, 2:8],
        nodes[0, 8],
        nodes[0, 9] if nodes.shape[1] == 10 else None,
    )


DECODERS = {
    "graph": decode_graph,
    "packed": decode_packed,
    "compact": decode_compact,
    "space": decode_space,
}


def decoded_episode(form, skeletons, name, target):
    env = gym.make("CrystalFill-v0", target_gap=target, skeletons=skeletons, observation=form)
    observations, *_ = play(env, random_choice(2), seed=9, options={"skeleton": name})
    return [DECODERS[form](o, skeletons) for o in observations]


def test_every_form_has_a_decoder():
    assert set(DECODERS) == set(FORMS)


@pytest.mark.parametrize("target", [1.12, None], ids=["target", "unconditional"])
@pytest.mark.parametrize("name", NAMES)
def test_all_forms_of_an_episode_carry_the_same_information(made_set, name, target):
    expected = decoded_episode("graph", made_set, name, target)
    skeleton = made_set[NAMES.index(name)]
    assert len(expected) == skeleton.n_sites + 1
    assert len(expected[0]["edges"]) == skeleton.n_edges
    for form in ("packed", "compact", "space"):
        assert decoded_episode(form, made_set, name, target) == expected


def test_an_observation_shows_the_state_it_was_made_from(made_set):
    env = gym.make("CrystalFill-v0", target_gap=1.5, skeletons=made_set)
    observation, _ = env.reset(seed=1, options={"skeleton": "layered", "start_site": 4})
    for token in (5, 7, 9):
        state = env.unwrapped.state
        seen = decode_graph(observation, made_set)
        assert seen["tokens"] == state.tokens.tolist()
        assert seen["focus"] == state.focus
        assert seen["target"] == 1.5
        observation, *_ = env.step(token - 1)


def test_the_last_observation_has_no_focus(made_set):
    for form, decode in DECODERS.items():
        env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=made_set, observation=form)
        observations, *_ = play(env, random_choice(0), seed=0, options={"skeleton": "rocksalt"})
        assert decode(observations[-1], made_set)["focus"] == 2, form


def test_lattice_and_space_group_are_in_angstrom_and_degrees(made_set):
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=made_set)
    observation, _ = env.reset(seed=0, options={"skeleton": "perovskite"})
    np.testing.assert_allclose(observation["lattice"], [3.91] * 3 + [90] * 3, rtol=1e-6)
    assert observation["space_group"].tolist() == [221]


def test_lengths_follow_from_cell_sites_and_images(made_set):
    for skeleton in made_set:
        source, target = skeleton.edge_index
        ends = skeleton.frac_coords[target] + skeleton.edge_image
        vectors = (ends - skeleton.frac_coords[source]) @ skeleton.lattice
        length = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(skeleton.edge_length, length, rtol=0, atol=1e-5)


def test_static_arrays_of_an_observation_cannot_be_changed_by_accident(made_set):
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=made_set)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="read-only"):
        observation["edge_length"][0] = 0.0


def test_an_earlier_observation_does_not_change(made_set):
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=made_set, observation="packed")
    observation, _ = env.reset(seed=0)
    before = observation.copy()
    env.step(3)
    np.testing.assert_array_equal(observation, before)


def test_an_unknown_form_is_refused(made_set):
    with pytest.raises(ValueError, match="observation='tree' is unknown: expected one of graph"):
        make_form("tree", made_set, conditional=True)


# -- rows ---------------------------------------------------------------------------------------


def test_a_compact_row_holds_its_header_and_tokens(made_set):
    tokens = np.array([[1, 2, 0, 0, 0, 0], [88, 3, 0, 4, 0, 0]], dtype=np.int8)
    rows = compact_rows(made_set, [0, 3], tokens, [1, 2], np.array([1.5, 3.0]))
    assert rows.dtype == np.float32
    assert rows.shape == (2, len(COMPACT_HEADER) + MIN_ROW_SITES)
    assert rows[:, 0].tolist() == [made_set.table_id] * 2
    assert rows[:, 1:5].tolist() == [[0, 1, 1, 1.5], [3, 2, 1, 3.0]]
    np.testing.assert_array_equal(rows[:, 5:11], tokens)
    assert not rows[:, 11:].any()


def test_a_compact_row_without_a_target_says_so(made_set):
    rows = compact_rows(made_set, [0], np.zeros((1, 6), dtype=np.int8), [0], None)
    assert rows[0, 3:5].tolist() == [0, 0]


def test_the_layout_is_read_off_packed_rows(made_set):
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=made_set, observation="packed")
    row, _ = env.reset(seed=0)
    layout = PackedLayout.of_rows(row[None])
    assert layout == PackedLayout(made_set.max_sites, made_set.max_edges)
    assert layout.width == len(row)


def test_the_slices_of_a_layout_follow_each_other_without_gaps():
    layout = PackedLayout(max_sites=4, max_edges=7)
    slices = [layout.tokens, layout.source, layout.target, layout.length, layout.image]
    assert slices[0].start == len(PACKED_HEADER)
    assert [s.stop for s in slices[:-1]] == [s.start for s in slices[1:]]
    assert [s.stop - s.start for s in slices] == [4, 7, 7, 7, 21]
    assert slices[-1].stop == layout.width


# -- rows from elsewhere --------------------------------------------------------------------------


def some_rows(form, skeletons):
    if form == "compact":
        tokens = np.zeros((2, skeletons.max_sites), np.int16)
        return compact_rows(skeletons, [0, 1], tokens, [0, 1], [3.0, 1.0])
    encoded = make_form("packed", skeletons, conditional=True)
    rows = [
        encoded.encode(encoded.prepare(s), np.zeros(s.n_sites, np.int16), 0, 3.0)
        for s in skeletons[:2]
    ]
    return np.stack(rows)


@pytest.mark.parametrize("form", ["compact", "packed"])
def test_rows_of_states_pass_with_rows_of_zeros_among_them(made_set, form):
    rows = some_rows(form, made_set)
    require_rows(rows)
    require_rows(np.concatenate([rows, np.zeros_like(rows)]))
    require_rows(np.zeros_like(rows))
    require_rows(rows[:0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e9])
@pytest.mark.parametrize(
    ("form", "name"),
    [("compact", n) for n in COMPACT_HEADER]
    + [("compact", "tokens")]
    + [("packed", n) for n in PACKED_HEADER if n not in ("a", "b", "c", "alpha", "beta", "gamma")]
    + [("packed", n) for n in ("tokens", "source", "target")],
)
def test_a_number_out_of_its_range_is_refused(made_set, form, name, value):
    rows = some_rows(form, made_set)
    header = COMPACT_HEADER if form == "compact" else PACKED_HEADER
    if name in header:
        rows[1, header.index(name)] = value
    elif form == "compact":
        rows[1, len(header)] = value
    else:
        rows[1, getattr(PackedLayout.of_rows(rows), name).start] = value
    with pytest.raises(ValueError, match="."):
        require_rows(rows)


@pytest.mark.parametrize("form", ["compact", "packed"])
def test_rows_cut_short_are_refused(made_set, form):
    rows = some_rows(form, made_set)
    for width in (0, 1, 10):
        with pytest.raises(ValueError, match="rows"):
            require_rows(rows[:, :width])
