"""The network against its plain PyTorch Geometric twin of the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("d3rlpy")
pytest.importorskip("torch_geometric")

from test_agents import built_cql, mini_batch, random_rows, random_set  # noqa: E402
from torch_geometric.data import Batch  # noqa: E402

from crystal_gym.agents import MEGNet, MEGNetEncoderFactory, rows_to_batch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from pyg_megnet import PygCQL, PygMEGNet, pyg_graphs  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("focus", ["node", "index"])
def test_equals_pyg(focus):
    skeletons = random_set()
    rows = random_rows(skeletons, 30)
    rows[[3, 8]] = 0.0
    fast, plain = MEGNet(focus), PygMEGNet(focus)
    plain.load_fast(fast.state_dict())
    found = fast(rows_to_batch(rows))
    expected = plain(Batch.from_data_list(pyg_graphs(skeletons, rows.numpy())))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(16)
    (found @ weights).sum().backward()
    (expected @ weights).sum().backward()
    grads = {name: p.grad for name, p in fast.named_parameters()}
    twin = PygMEGNet(focus)
    twin.load_fast(grads)
    for (name, p), q in zip(plain.named_parameters(), twin.parameters(), strict=True):
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(q.data, p.grad, rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name)


def test_update_has_the_loss_of_the_plain_one():
    batch = mini_batch(random_set())
    batch.intervals.fill_(1.0)
    paper = MEGNetEncoderFactory("paper")
    algo, plain = built_cql(random_set(), encoder_factory=paper), PygCQL()
    q = algo.impl.modules.q_funcs[0]
    plain.online.network.load_fast(q.encoder.network.state_dict())
    plain.online.head.load_state_dict(q._fc.state_dict())
    plain.target.load_state_dict(plain.online.state_dict())
    now, later = (
        pyg_graphs(random_set(), rows.numpy())
        for rows in (batch.observations, batch.next_observations)
    )
    for _ in range(3):
        expected = plain.update(now, batch.actions.long(), batch.rewards, later, batch.terminals)
        assert algo.impl.update(batch, 0)["loss"] == pytest.approx(expected, rel=1e-4)
