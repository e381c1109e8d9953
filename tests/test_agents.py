"""Agents: graphs from rows, MEGNet, its d3rlpy encoder, conservative Q-learning, policies."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
d3rlpy = pytest.importorskip("d3rlpy")
pytest.importorskip("torch_geometric")

from d3rlpy import load_learnable  # noqa: E402
from d3rlpy.algos import DiscreteBCConfig, DiscreteCQLConfig, DQNConfig  # noqa: E402
from d3rlpy.torch_utility import TorchMiniBatch  # noqa: E402
from made_crystals import perovskite, replaced  # noqa: E402
from pymatgen.core import Structure  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.functional import softplus  # noqa: E402
from torch_geometric.nn.aggr import Set2Set  # noqa: E402

from crystal_gym.agents import (  # noqa: E402
    CrystalCQLConfig,
    GreedyPolicy,
    MEGNet,
    MEGNetEncoderFactory,
    load_policy,
    load_saved_policy,
    native,
    rows_to_batch,
    save_policy,
)
from crystal_gym.agents import kernels as K  # noqa: E402
from crystal_gym.agents.batch import focus_every_site  # noqa: E402
from crystal_gym.agents.policy import BUNDLED_POLICY  # noqa: E402
from crystal_gym.agents.sites import site_values  # noqa: E402
from crystal_gym.elements import N_ELEMENTS  # noqa: E402
from crystal_gym.envs.observations import compact_rows, make_form  # noqa: E402
from crystal_gym.evaluation import Task, rollout  # noqa: E402
from crystal_gym.evaluation.metrics import accuracy  # noqa: E402
from crystal_gym.files import sha256_of  # noqa: E402
from crystal_gym.graphs import Geometry  # noqa: E402
from crystal_gym.sets import load_skeletons  # noqa: E402
from crystal_gym.skeletons import Cell, SkeletonSet, build_skeletons  # noqa: E402
from crystal_gym.structures import cell_from_structure  # noqa: E402

SEED = 7
PRESETS = pytest.mark.parametrize("preset", ["default", "paper"])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    yield
    torch.set_num_threads(threads)


def geometry(edges: np.ndarray, length: np.ndarray, n_sites: int, space_group: int) -> Geometry:
    """A geometry of bonds ``(2, M)``, each taken in both directions."""
    edges = np.concatenate([edges, edges[::-1]], axis=1)
    order = np.lexsort(edges[::-1])
    return Geometry(
        edges[:, order].astype(np.int16),
        np.zeros((edges.shape[1], 3), np.int16),
        np.tile(length, 2)[order].astype(np.float32),
        np.arange(n_sites, dtype=np.int16)[None],
        space_group,
    )


def random_set(seed: int = 0, sizes: tuple[int, ...] = (3, 5, 1, 4, 8, 2, 6)) -> SkeletonSet:
    """Random multigraphs; the third has one site and no bond, lengths repeat."""
    rng = np.random.default_rng(seed)
    cells, geometries = [], []
    for i, n in enumerate(sizes):
        lattice = np.diag(rng.uniform(3, 9, 3)) + rng.uniform(0, 0.5, (3, 3))
        cells.append(Cell.from_sites(f"{seed}-{i}", lattice, rng.random((n, 3)), [0] * n))
        bonds = rng.integers(0, n, (2, 0 if n == 1 else 4 * n))
        length = rng.choice(rng.uniform(1.0, 2.5, 3), bonds.shape[1])
        geometries.append(geometry(bonds, length, n, int(rng.integers(1, 231))))
    return SkeletonSet.from_cells(cells, geometries)


def random_states(skeletons: SkeletonSet, n: int, seed: int = 1):
    """Numbers, tokens, focus (the last site count included) and targets of random states."""
    rng = np.random.default_rng(seed)
    number = np.arange(n) % len(skeletons)
    tokens = rng.integers(0, N_ELEMENTS + 1, (n, skeletons.max_sites))
    tokens[np.arange(skeletons.max_sites) >= skeletons.n_sites[number][:, None]] = 0
    return number, tokens, rng.integers(0, skeletons.n_sites[number] + 1), rng.uniform(0, 5, n)


def random_rows(skeletons: SkeletonSet, n: int = 14, seed: int = 1) -> torch.Tensor:
    number, tokens, focus, target = random_states(skeletons, n, seed)
    return torch.from_numpy(compact_rows(skeletons, number, tokens, focus, target))


def packed_rows(skeletons: SkeletonSet, n: int = 14, seed: int = 1) -> torch.Tensor:
    form = make_form("packed", skeletons, conditional=True)
    number, tokens, focus, target = random_states(skeletons, n, seed)
    rows = [
        form.encode(form.prepare(skeletons[s]), t[: skeletons[s].n_sites], int(f), float(g))
        for s, t, f, g in zip(number, tokens, focus, target, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def random_dataset(rows: np.ndarray, steps: int = 4) -> d3rlpy.dataset.MDPDataset:
    terminals = np.zeros(len(rows))
    terminals[steps - 1 :: steps] = 1
    terminals[-1] = 1
    rng = np.random.default_rng(0)
    return d3rlpy.dataset.MDPDataset(
        rows,
        rng.integers(0, N_ELEMENTS, len(rows)),
        rng.random(len(rows), np.float32),
        terminals,
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=N_ELEMENTS,
    )


def mini_batch(skeletons: SkeletonSet, n: int = 14) -> TorchMiniBatch:
    x, y = random_rows(skeletons, n, 1), random_rows(skeletons, n, 2)
    generator = torch.Generator().manual_seed(0)
    last = (torch.arange(n) % 3 == 0).float()[:, None]
    return TorchMiniBatch(
        observations=x,
        actions=torch.randint(0, N_ELEMENTS, (n, 1), generator=generator).float(),
        rewards=torch.rand(n, 1, generator=generator) * 5,
        next_observations=y,
        next_actions=torch.zeros(n, 1),
        returns_to_go=torch.zeros(n, 1),
        terminals=last,
        intervals=torch.randint(1, 4, (n, 1), generator=generator).float(),
        device="cpu",
    )


def built_cql(skeletons: SkeletonSet, **settings):
    algo = CrystalCQLConfig(**settings).create("cpu")
    algo.create_impl((random_rows(skeletons).shape[1],), N_ELEMENTS)
    return algo


# Network ----------------------------------------------------------------------------------------


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("focus", "expected"), [("index", 185_728), ("node", 185_728 - 21 * 8 - 8 * 64 + 16)]
)
def test_parameter_count_with_head(focus, expected):
    assert n_parameters(MEGNet(focus)) + n_parameters(torch.nn.Linear(16, 88)) == expected


def naive_features(net: MEGNet, skeletons: SkeletonSet, rows: np.ndarray) -> torch.Tensor:
    """MEGNet as published, one graph at a time, every bond on its own, nothing fused."""

    def mlp(module, x):
        for layer in module.layers:
            x = softplus(layer(x)) - np.log(2.0)
        return x

    def pool(module, x):
        index = torch.zeros(len(x), dtype=torch.long)
        parameters = dict(module.named_parameters())
        return functional_call(Set2Set(32, 2), parameters, (x, index), {"dim_size": 1})[0]

    features = []
    for row in rows:
        skeleton = skeletons[int(row[1])]
        n, focus = skeleton.n_sites, int(row[2])
        source, target = torch.from_numpy(skeleton.edge_index.astype(np.int64))
        v = net.embed_element(torch.tensor([int(t) for t in row[5 : 5 + n]]))
        parameters = torch.tensor(skeleton.lattice_parameters, dtype=torch.float32)
        u = torch.cat([parameters, torch.tensor([float(skeleton.space_group_number), row[4]])])
        if net.embed_focus is not None:
            u = torch.cat([u, net.embed_focus(torch.tensor(min(focus, 20)))])
        elif focus < n:
            v = torch.cat([v[:focus], v[focus : focus + 1] + net.focus_vector, v[focus + 1 :]])
        e = torch.exp(-torch.from_numpy(skeleton.edge_length).square() / 2)[:, None]
        e, v, u = mlp(net.encode_edges, e), mlp(net.encode_nodes, v), mlp(net.encode_state, u)
        for block in net.blocks:
            skip = e, v, u
            if block.dense:
                e, v, u = (mlp(f, x) for f, x in zip(block.dense, skip, strict=True))
            of_graph = u.expand(len(e), -1)
            e = mlp(block.update_edges, torch.cat([v[source], v[target], e, of_graph], 1))
            mean = torch.stack(
                [e[target == i].mean(0) if (target == i).any() else 0 * u for i in range(n)]
            )
            v = mlp(block.update_nodes, torch.cat([v, mean, u.expand(n, -1)], 1))
            mean = e.mean(0) if len(e) else 0 * u
            u = mlp(block.update_state, torch.cat([u, mean, v.mean(0)]))
            e, v, u = e + skip[0], v + skip[1], u + skip[2]
        pooled = torch.cat([pool(net.pool_nodes, v), pool(net.pool_edges, e), u])
        features.append(mlp(net.readout, pooled))
    return torch.stack(features)


@pytest.fixture(params=["in C", "fast", "plain"])
def activation(request, monkeypatch):
    """Let networks use one of the three forms of the activation."""
    in_c = native._compiled() if request.param == "in C" else None
    if request.param == "in C" and in_c is None:
        pytest.skip("there is no C compiler")
    form = K._Activation(request.param != "plain")
    monkeypatch.setattr(K._Activation, "on", lambda _: form)
    monkeypatch.setattr(K, "loops_in_c", lambda _: in_c)


@pytest.mark.parametrize("focus", ["node", "index"])
def test_equals_naive_network(focus, activation):
    skeletons = random_set()
    rows = random_rows(skeletons)
    net = MEGNet(focus)
    expected = naive_features(net, skeletons, rows.numpy())
    weights = torch.randn(16)
    expected_grads = torch.autograd.grad((expected @ weights).sum(), list(net.parameters()))
    found = net(rows_to_batch(rows))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((found @ weights).sum(), list(net.parameters()))
    for (name, _), a, b in zip(net.named_parameters(), grads, expected_grads, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name)


def test_activation_is_exact_at_any_size(activation):
    identity, zero = torch.eye(1), torch.zeros(1)
    for x in ([-1e4, -90.0, -1.0, 0.0, 1e-3, 30.0], [-500.0, 82.0, 83.5, 90.0, 1e4]):
        x = torch.tensor(x)[:, None].requires_grad_()
        y = K.mlp(x, identity, zero)
        y.sum().backward()
        exact = x.detach().double()
        torch.testing.assert_close(y.double(), softplus(exact) - np.log(2), rtol=1e-6, atol=2e-7)
        torch.testing.assert_close(x.grad.double(), exact.sigmoid(), rtol=1e-6, atol=2e-7)


def test_what_is_not_finite_stays_so(activation):
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])
    y = K.mlp(x, torch.eye(2), torch.zeros(2))
    # A row with a NaN is one in both columns of a product.
    assert not y.isfinite().all(1).any()


def test_loops_are_in_c_where_a_compiler_is(monkeypatch, tmp_path):
    x = torch.zeros(1)
    try:
        native._compiled.cache_clear()
        if shutil.which("cc"):
            assert native.loops_in_c(x) is not None
        assert native.loops_in_c(x.double()) is None
        broken = tmp_path / "broken-cc"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        for compiler in ("no-such-compiler", str(broken)):
            monkeypatch.setenv("CC", compiler)
            native._compiled.cache_clear()
            assert native.loops_in_c(x) is None
    finally:
        native._compiled.cache_clear()


@pytest.mark.parametrize("used", ["result", "result + skip", "both"])
@pytest.mark.parametrize("adds_input", [True, False])
def test_edge_mlp_of_any_size_equals_autograd(activation, monkeypatch, used, adds_input):
    monkeypatch.setattr(native, "_ROWS_A_THREAD", 50)
    generator = torch.Generator().manual_seed(0)
    n_nodes, n_edges, sizes = 9, 211, [7, 5, 83, 16, 7]
    edges, skip = torch.randn(2, n_edges, 7, generator=generator).unbind()
    ends = torch.randn(2 * n_nodes, 83, generator=generator)
    nodes = torch.randint(n_nodes, (n_edges, 2), generator=generator)
    at = nodes + torch.tensor([0, n_nodes])
    order = at.t().flatten().argsort(stable=True)
    counts = torch.bincount(at.flatten(), minlength=2 * n_nodes).cumsum(0)
    pairs = K.Pairs(at, order % n_edges, torch.cat([torch.zeros(1, dtype=torch.int64), counts]))
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    leaves = [edges.requires_grad_(), skip.requires_grad_(), ends.requires_grad_(), *parameters]
    weights = torch.randn(2, n_edges, 7, generator=generator)
    weights *= torch.tensor([used != "result + skip", used != "result"])[:, None, None]

    def gradients(result, added):
        total = (result * weights[0]).sum() if used != "result + skip" else 0.0
        total = total + ((added * weights[1]).sum() if used != "result" else 0.0)
        return torch.autograd.grad(total, leaves, allow_unused=True)

    other = edges if adds_input else skip
    found = K.edge_mlp(edges, other, ends, pairs, 1, *parameters)
    h = edges
    for i, layer in enumerate(layers):
        h = softplus(layer(h) + (ends[at].sum(1) if i == 1 else 0.0)) - np.log(2)
    torch.testing.assert_close(found, (h, h + other), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        kept_nothing = K.edge_mlp(edges, other, ends, pairs, 1, *parameters)
    torch.testing.assert_close(kept_nothing, found, rtol=0, atol=0)
    for a, b in zip(gradients(*found), gradients(h, h + other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_blocks_of_rows_change_nothing(monkeypatch):
    monkeypatch.setattr(K, "loops_in_c", lambda _: None)
    rows = random_rows(random_set(), 30)
    net = MEGNet()
    whole = net(rows_to_batch(rows))
    monkeypatch.setattr(K, "_BLOCK_ROWS", 7)
    torch.testing.assert_close(net(rows_to_batch(rows)), whole, rtol=1e-6, atol=1e-6)


@PRESETS
def test_compact_and_packed_rows_agree(preset):
    skeletons = random_set()
    encoder = MEGNetEncoderFactory(preset).create((1,)).eval()
    compact, packed = random_rows(skeletons), packed_rows(skeletons)
    torch.testing.assert_close(encoder(compact), encoder(packed), rtol=1e-5, atol=1e-5)
    compact[[2, 5]] = 0.0
    packed[[2, 5]] = 0.0
    torch.testing.assert_close(encoder(compact), encoder(packed), rtol=1e-5, atol=1e-5)


def test_equal_bonds_are_one_weighted_edge():
    skeletons = random_set()
    compact, packed = rows_to_batch(random_rows(skeletons)), rows_to_batch(packed_rows(skeletons))
    assert len(compact.source) < len(packed.source)
    assert float(compact.edge_weight.sum()) == len(packed.source)
    for batch in (compact, packed):
        assert bool((batch.source.diff() >= 0).all())
        assert bool((batch.target[batch.by_target].diff() >= 0).all())
        assert batch.edge_length.shape == batch.source.shape


@PRESETS
def test_numbering_of_sites_does_not_matter_but_focus_does(preset):
    rng = np.random.default_rng(3)
    n = 6
    bonds, length = rng.integers(0, n, (2, 20)), rng.uniform(1, 2, 20)
    order = rng.permutation(n)
    number = np.argsort(order)  # old site -> new site
    cell = Cell.from_sites("a", np.eye(3) * 5, rng.random((n, 3)), [0] * n)
    skeletons = SkeletonSet.from_cells(
        [cell, cell], [geometry(bonds, length, n, 1), geometry(number[bonds], length, n, 1)]
    )
    tokens = rng.permutation(np.arange(n))
    net = MEGNetEncoderFactory(preset).create((1,)).eval().network

    def features(skeleton, tokens, focus):
        return net(rows_to_batch(torch.from_numpy(
            compact_rows(skeletons, [skeleton], tokens[None], [focus], 2.0)
        )))  # fmt: skip

    first = features(0, tokens, 2)
    torch.testing.assert_close(
        features(1, tokens[order], int(number[2])), first, rtol=1e-5, atol=1e-5
    )
    moved = features(0, tokens, 3)
    assert not torch.allclose(moved, first, atol=1e-4)


@PRESETS
def test_neither_elements_nor_their_order_in_a_file_reach_a_network(preset):
    """The bare skeleton of a crystal: same Q for other species and any order of the sites."""
    crystal = perovskite()
    rng = np.random.default_rng(1)
    network = MEGNetEncoderFactory(preset).create((1,)).eval()
    rows = []
    for symbols in (["Sr", "Ti", "O", "O", "O"], ["O", "O", "K", "F", "Na"]):
        for _ in range(3):
            other = replaced(crystal, symbols)
            shuffled = Structure.from_sites([other[int(i)] for i in rng.permutation(len(other))])
            skeletons, _ = build_skeletons([cell_from_structure(shuffled, "x")])
            order = Task.of_skeletons(skeletons).traversal[0]
            form = make_form("packed", skeletons, conditional=True)
            empty = np.zeros(len(other), np.int16)
            rows.append(form.encode(form.prepare(skeletons[0]), empty, int(order[0]), 2.0))
    features = network(torch.from_numpy(np.stack(rows)))
    torch.testing.assert_close(features, features[:1].expand_as(features), rtol=1e-5, atol=1e-5)


@PRESETS
@pytest.mark.parametrize("make", [random_rows, packed_rows], ids=["compact", "packed"])
def test_zero_rows_and_edgeless_graphs_are_finite(make, preset):
    rows = make(random_set(sizes=(1, 3, 1)), 6)
    rows[[0, 4]] = 0.0
    encoder = MEGNetEncoderFactory(preset).create((1,))
    for batch in (rows, rows[2:3], rows[:1], torch.zeros_like(rows)):
        features = encoder(batch)
        features.sum().backward()
        assert features.shape == (len(batch), encoder.network.n_features)
        assert bool(features.isfinite().all())
    # Empty crystals alone leave what reads sites without a gradient, or with one of 0.
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert len(grads) > 20
    assert all(bool(g.isfinite().all()) for g in grads)


def test_target_is_ignored_when_unconditional():
    rows = random_rows(random_set())
    rows[:, 3] = 0.0
    assert float(rows_to_batch(rows).target_gap.abs().max()) == 0.0


def test_rows_of_unknown_or_mixed_tables_are_refused():
    rows = random_rows(random_set())
    unknown = rows.clone()
    unknown[:, 0] = 3.0
    with pytest.raises(KeyError, match="table 3"):
        rows_to_batch(unknown)
    rows[0, 0] = 3.0
    with pytest.raises(ValueError, match="mixed"):
        rows_to_batch(rows)
    rows[0, 0] = 0.0
    with pytest.raises(ValueError, match="mixed"):
        rows_to_batch(rows)


def test_every_site_at_once_gives_what_each_gives_in_focus():
    skeletons = random_set()
    rows, packed = random_rows(skeletons), packed_rows(skeletons)
    rows[:, 5::2] = 0.0
    packed[:, 14 : 14 + skeletons.max_sites : 2] = 0.0
    network = MEGNetEncoderFactory().create((1,)).eval()
    for of in (rows, packed):
        graphs = rows_to_batch(of)
        every = network(focus_every_site(of))
        sites = graphs.empty_sites
        assert len(every) == len(sites) > len(rows)
        graph = graphs.node_graph[sites]
        moved = of[graph].clone()
        moved[:, 2 if of is rows else 3] = (sites - graphs.node_start[graph]).float()
        torch.testing.assert_close(every, network(moved), rtol=1e-5, atol=1e-5)


def test_half_of_the_loss_is_over_every_empty_site():
    """Against a plain loop over sites."""
    skeletons = random_set()
    table_rows = random_rows(skeletons)
    finished = np.random.default_rng(5).integers(1, 89, (len(table_rows), skeletons.max_sites))
    n_sites = skeletons.n_sites[table_rows[:, 1].long().numpy()]
    finished[np.arange(skeletons.max_sites) >= n_sites[:, None]] = 0
    network = built_cql(skeletons).impl.modules.q_funcs[0].eval()
    unfinished = table_rows[:, 2] < torch.from_numpy(skeletons.n_sites)[table_rows[:, 1].long()]
    rows, finished = table_rows[unfinished], finished[unfinished]
    rows[:, 5::3] = 0.0
    rows[torch.arange(len(rows)), 5 + rows[:, 2].long()] = 0.0
    assert len(rows) > 3
    actions = torch.tensor([finished[i, int(r[2])] - 1 for i, r in enumerate(rows)])
    batch = dataclasses.replace(
        mini_batch(skeletons), observations=rows, actions=actions[:, None].float(),
        numpy_batch=SimpleNamespace(finished=finished.astype(np.int8)),
    )  # fmt: skip
    found = site_values(network, batch).cross_entropy(actions)
    focus, every = [], []
    with torch.no_grad():
        for i, row in enumerate(rows):
            for site in range(int(skeletons.n_sites[int(row[1])])):
                if row[5 + site] == 0:
                    moved = row.clone()
                    moved[2] = site
                    q = network(moved[None]).q_value[0]
                    every.append(q.logsumexp(0) - q[finished[i, site] - 1])
                    if site == int(row[2]):
                        focus.append(every[-1])
    assert len(every) > len(focus)
    expected = 0.5 * (torch.stack(focus).mean() + torch.stack(every).mean())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Encoder and algorithms -------------------------------------------------------------------------


def test_factory_survives_json():
    config = DQNConfig(encoder_factory=MEGNetEncoderFactory("paper", focus="index"))
    again = DQNConfig.deserialize(config.serialize())
    assert again.encoder_factory == MEGNetEncoderFactory(preset="paper", focus="index")
    assert again.encoder_factory.get_type() == "crystal_megnet"


def test_factory_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"preset='big'.*paper"):
        MEGNetEncoderFactory(preset="big")
    with pytest.raises(ValueError, match=r"focus='edge'.*node, index"):
        MEGNetEncoderFactory(focus="edge")
    with pytest.raises(ValueError, match=r"focus='index' is not for preset='default'"):
        MEGNetEncoderFactory(focus="index").create((25,))
    with pytest.raises(ValueError, match="no rows"):
        MEGNetEncoderFactory().create((3, 8, 8))


@PRESETS
@pytest.mark.parametrize("discrete", [True, False])
def test_encoder_with_action(discrete, preset):
    rows = random_rows(random_set())
    factory = MEGNetEncoderFactory(preset)
    encoder = factory.create_with_action((rows.shape[1],), 5, discrete)
    action = torch.randint(0, 5, (len(rows), 1)) if discrete else torch.rand(len(rows), 5)
    assert encoder(rows, action).shape == (len(rows), encoder.rows.network.n_features)


@pytest.mark.parametrize(
    "config", [DiscreteBCConfig, DQNConfig, DiscreteCQLConfig, CrystalCQLConfig]
)
@pytest.mark.parametrize("make", [random_rows, packed_rows], ids=["compact", "packed"])
def test_algorithms_train(config, make):
    dataset = random_dataset(make(random_set(), 16).numpy())
    algo = config(encoder_factory=MEGNetEncoderFactory(), batch_size=8).create("cpu")
    algo.build_with_dataset(dataset)
    modules = algo.impl.modules
    network = modules.imitator if config is DiscreteBCConfig else modules.q_funcs
    before = [p.detach().clone() for p in network.parameters()]
    metrics = algo.update(dataset.sample_transition_batch(8))
    assert all(np.isfinite(v) for v in metrics.values())
    changed = [bool((a != b).any()) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert algo.predict(random_rows(random_set(), 5).numpy()).shape == (5,)


def test_defaults_of_the_paper():
    config = CrystalCQLConfig()
    assert (config.batch_size, config.gamma, config.learning_rate) == (1024, 0.99, 3e-4)
    assert (config.tau, config.conservative_weight) == (0.005, 1.0)
    assert config.optim_factory.clip_grad_norm == 5.0
    assert isinstance(config.encoder_factory, MEGNetEncoderFactory)
    again = CrystalCQLConfig.deserialize(config.serialize())
    assert again == config


def test_loss_is_algorithm_1():
    skeletons = random_set()
    algo, batch = built_cql(skeletons, conservative_weight=2.5, gamma=0.9), mini_batch(skeletons)
    torch.nn.init.normal_(algo.impl.modules.targ_q_funcs[0]._fc.weight)
    algo.impl.modules.set_eval()  # without dropout
    with torch.no_grad():
        q = algo.impl.modules.q_funcs[0](batch.observations).q_value.double().numpy()
        q_next = algo.impl.modules.targ_q_funcs[0](batch.next_observations).q_value
    q_next = q_next.double().numpy()
    action = batch.actions.numpy().astype(int).ravel()
    reward, last, steps = (
        t.double().numpy().ravel() for t in (batch.rewards, batch.terminals, batch.intervals)
    )
    taken = q[np.arange(len(q)), action]
    goal = reward + 0.9**steps * (1 - last) * q_next.max(1)
    td_loss = 0.5 * np.mean((taken - goal) ** 2)
    conservative = np.mean(np.log(np.exp(q).sum(1)) - taken)

    target = algo.impl.compute_target(batch)
    assert not target.requires_grad
    with torch.no_grad():
        loss = algo.impl.compute_loss(batch, target)
    assert float(loss.td_loss) == pytest.approx(td_loss, rel=1e-6)
    assert float(loss.conservative_loss) == pytest.approx(conservative, rel=1e-6)
    assert float(loss.loss) == pytest.approx(td_loss + 2.5 * conservative, rel=1e-6)
    assert float(loss.accuracy) == pytest.approx(np.mean(q.argmax(1) == action))
    assert set(algo.impl.update(batch, 0)) == {"loss", "td_loss", "conservative_loss", "accuracy"}


def test_target_follows_softly_every_step():
    skeletons = random_set()
    algo, batch = built_cql(skeletons, tau=0.25), mini_batch(skeletons)
    modules = algo.impl.modules
    before = [p.detach().clone() for p in modules.targ_q_funcs.parameters()]
    for old, online in zip(before, modules.q_funcs.parameters(), strict=True):
        assert torch.equal(old, online)
    algo.impl.update(batch, 3)
    for old, online, new in zip(
        before, modules.q_funcs.parameters(), modules.targ_q_funcs.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)


def test_gradients_are_clipped():
    skeletons = random_set()
    algo, batch = built_cql(skeletons), mini_batch(skeletons)
    batch.rewards.mul_(1e4)
    algo.impl.update(batch, 0)
    norm = torch.stack([p.grad.norm() for p in algo.impl.modules.q_funcs.parameters()]).norm()
    assert float(norm) == pytest.approx(5.0, rel=1e-4)


def test_compiled_graphs_are_refused():
    with pytest.raises(ValueError, match="compile_graph"):
        built_cql(random_set(), compile_graph=True)


# Policies ---------------------------------------------------------------------------------------


def test_masks_are_respected():
    skeletons = random_set()
    policy = GreedyPolicy(built_cql(skeletons))
    rows = random_rows(skeletons).numpy()
    values = policy.values(rows)
    assert values.shape == (len(rows), N_ELEMENTS)
    assert np.array_equal(policy.predict(rows), values.argmax(1))
    mask = np.zeros((len(rows), N_ELEMENTS), np.int8)
    allowed = np.random.default_rng(0).integers(0, N_ELEMENTS, (len(rows), 4))
    np.put_along_axis(mask, allowed, 1, axis=1)
    actions = policy.predict(rows, mask)
    assert actions.dtype == np.int64
    assert np.array_equal(actions, np.where(mask, values, -np.inf).argmax(1))
    assert set(policy.predict(rows, np.eye(N_ELEMENTS, dtype=np.int8)[17])) == {17}
    assert np.array_equal(policy.predict(rows), values.argmax(1))


def test_large_batches_are_chunked(monkeypatch):
    skeletons = random_set()
    policy = GreedyPolicy(built_cql(skeletons))
    rows = random_rows(skeletons, 23).numpy()
    expected = policy.values(rows)
    monkeypatch.setattr("crystal_gym.agents.policy.CHUNK", 5)
    np.testing.assert_allclose(policy.values(rows), expected, rtol=1e-5, atol=1e-6)
    mask = np.eye(N_ELEMENTS, dtype=np.int8)[np.arange(23)]
    assert np.array_equal(policy.predict(rows, mask), np.arange(23))
    assert policy.predict(rows[:0]).shape == (0,)


def test_bad_observations_and_masks_are_refused():
    skeletons = random_set()
    policy = GreedyPolicy(built_cql(skeletons))
    rows = random_rows(skeletons).numpy()
    with pytest.raises(ValueError, match="expected rows"):
        policy.predict(rows[0])
    with pytest.raises(ValueError, match="allows no action in row 0"):
        policy.predict(rows, np.zeros(N_ELEMENTS, np.int8))
    with pytest.raises(ValueError, match="action_mask has shape"):
        policy.predict(rows, np.ones((3, N_ELEMENTS), np.int8))


def test_policy_needs_a_network():
    with pytest.raises(ValueError, match="no network yet"):
        GreedyPolicy(CrystalCQLConfig().create("cpu"))
    with pytest.raises(TypeError, match="no policy"):
        GreedyPolicy("best")


@pytest.mark.parametrize("config", [DiscreteBCConfig, DQNConfig, CrystalCQLConfig])
def test_saved_policy_acts_the_same(config, tmp_path):
    rows = random_rows(random_set(), 30).numpy()
    algo = config(encoder_factory=MEGNetEncoderFactory()).create("cpu")
    algo.create_impl((rows.shape[1],), N_ELEMENTS)
    save_policy(algo, tmp_path / "policy", metadata={"data": "made", "seed": SEED})
    policy = load_saved_policy(tmp_path / "policy")
    assert policy.metadata == {"data": "made", "seed": SEED}
    assert np.array_equal(policy.values(rows), GreedyPolicy(algo).values(rows))
    assert np.array_equal(policy.predict(rows), algo.predict(rows))
    config_json = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config_json["observation_width"] == rows.shape[1]
    assert set(config_json["versions"]) == {"d3rlpy", "python", "torch", "torch_geometric"}
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == ["config.json", "weights.pt"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(built_cql(random_set()), folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "policy")


class _Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_code_in_weights_is_refused(broken):
    (broken / "weights.pt").write_bytes(pickle.dumps(_Malicious(), protocol=2))
    with pytest.raises(ValueError, match="could run code, and was not read"):
        load_saved_policy(broken)
    torch.save({"a": _Malicious()}, broken / "weights.pt")
    with pytest.raises(ValueError, match="could run code, and was not read"):
        load_saved_policy(broken)


@pytest.mark.parametrize("size", [0, 10, 20_000, -30])
def test_truncated_weights_are_refused(broken, size):
    path = broken / "weights.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"weights\.pt"):
        load_saved_policy(broken)


def test_swapped_weights_are_refused(broken):
    weights = torch.load(broken / "weights.pt", weights_only=True)
    torch.save({k: v + 1 for k, v in weights.items()}, broken / "weights.pt")
    with pytest.raises(ValueError, match="not the file that"):
        load_saved_policy(broken)
    torch.save([1, 2], broken / "weights.pt")
    with pytest.raises(ValueError, match="other things than tensors"):
        load_saved_policy(broken)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"format": 2}, "policy format 2, expected 1", id="version"),
        pytest.param({"elements": "H He"}, "vocabulary of 2 elements", id="vocabulary"),
        pytest.param({"algorithm": {"type": "x"}}, "does not know", id="algorithm"),
    ],
)
def test_foreign_configuration_is_refused(broken, changes, message):
    edit(broken, **changes)
    with pytest.raises(ValueError, match=message):
        load_saved_policy(broken)


def test_other_network_is_refused(broken):
    config = json.loads((broken / "config.json").read_text())
    config["algorithm"]["config"]["params"]["encoder_factory"]["params"]["preset"] = "paper"
    edit(broken, algorithm=config["algorithm"])
    with pytest.raises(ValueError, match="does not fit the network"):
        load_saved_policy(broken)


def test_missing_or_foreign_files_are_refused(broken, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_saved_policy(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"pickle.*load_learnable"):
        load_saved_policy(tmp_path / "model.d3")
    with pytest.raises(ValueError, match=r"no folder of save_policy.*load_learnable"):
        load_saved_policy(broken / "weights.pt")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not the configuration"):
        load_saved_policy(broken)
    (broken / "weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        load_saved_policy(broken)


# Bundled policy ---------------------------------------------------------------------------------


def test_the_bundled_policy_acts_by_the_target_and_is_small():
    policy = load_policy()
    folder = BUNDLED_POLICY
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert policy.metadata["settings"]["algorithm"] in card
    assert "make policy" in card
    task = Task.of_skeletons(load_skeletons("mini"))
    low, high = (rollout(policy, task, target) for target in (0.5, 5.0))
    assert (low != high).any()
    assert accuracy(low, task.reference) > 0.15  # the majority element: 0.11


@pytest.mark.parametrize(
    "encoder",
    [
        {"type": "vector", "params": {"hidden_units": [10**6, 10**6]}},
        {"type": "vector", "params": {"hidden_units": [10**12]}},
        {"type": "os:system", "params": {}},
    ],
    ids=["product", "width", "type"],
)
def test_a_network_larger_than_its_weights_is_not_built(broken, encoder):
    config = json.loads((broken / "config.json").read_text())
    config["algorithm"]["config"]["params"]["encoder_factory"] = encoder
    edit(broken, algorithm=config["algorithm"])
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.json names the algorithm|does not fit") as error:
        load_saved_policy(broken)
    assert time.monotonic() - begun < 3
    assert "\n" not in str(error.value)


def test_weights_under_another_name_are_not_unpickled(broken, tmp_path):
    class Touches:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    for content in (pickle.dumps(Touches()), b"PK\x03\x04" + pickle.dumps(Touches())):
        (broken / "weights.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pt"):
            load_saved_policy(broken)
        (tmp_path / "renamed").write_bytes(content)
        with pytest.raises(ValueError, match="pickles that can run any code"):
            load_policy(tmp_path / "renamed")
    assert not (tmp_path / "owned").exists()


def test_a_d3rlpy_file_of_one_s_own_can_be_converted_as_the_error_says(tmp_path):
    algorithm = DiscreteCQLConfig().create(device=False)
    algorithm.create_impl((25,), N_ELEMENTS)
    algorithm.save(str(tmp_path / "mine.d3"))
    with pytest.raises(ValueError, match=r"save_policy\(d3rlpy\.load_learnable\(path\), folder\)"):
        load_policy(tmp_path / "mine.d3")
    save_policy(load_learnable(str(tmp_path / "mine.d3")), tmp_path / "policy")
    rows = np.zeros((3, 25), np.float32)
    assert load_policy(tmp_path / "policy").predict(rows).tolist() == (
        algorithm.predict(rows).tolist()
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**9), "larger than its data"),
        (torch.eye(3).to_sparse(), "larger than its data"),
        (torch.tensor([float("nan")]), "no finite number"),
    ],
    ids=["expanded", "sparse", "nan"],
)
def test_weights_of_no_training_are_refused(broken, tensor, message):
    weights = torch.load(broken / "weights.pt", weights_only=True)
    weights[next(iter(weights))] = tensor
    torch.save(weights, broken / "weights.pt")
    edit(broken, weights_sha256=sha256_of(broken / "weights.pt"))
    with pytest.raises(ValueError, match=message):
        load_saved_policy(broken)
