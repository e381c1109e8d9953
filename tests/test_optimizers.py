"""Muon and AdamW behind one optimizer."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
d3rlpy = pytest.importorskip("d3rlpy")

from crystal_gym.agents import CrystalBCConfig, MEGNetEncoderFactory  # noqa: E402
from crystal_gym.agents.optimizers import MuonFactory  # noqa: E402
from crystal_gym.agents.schedules import WarmupCosineFactory  # noqa: E402


def network():
    torch.manual_seed(0)
    return MEGNetEncoderFactory("default").create((25,))


def optimizer(module, lr=1e-2):
    factory = MuonFactory(weight_decay=0.1, lr_scheduler_factory=WarmupCosineFactory(4, 10))
    return factory.create(module.named_modules(), lr=lr, compiled=False)


def step(module, optim, seed):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optim.step()


def test_every_parameter_is_updated_once_and_dense_layers_by_muon():
    module = network()
    muon, adam = optimizer(module).optim.param_groups
    by_name = {id(p): name for name, p in module.named_parameters()}
    names = [{by_name[id(p)] for p in group["params"]} for group in (muon, adam)]
    assert names[0] | names[1] == set(by_name.values())
    assert not names[0] & names[1]
    assert "momentum" in muon
    assert "betas" in adam
    assert "network.layers.0.attention.project.weight" in names[0]
    assert "network.layers.0.attention.project.bias" in names[1]
    assert "network.embed_element.weight" in names[1]


def test_a_dense_layer_moves_along_all_directions_alike():
    module = network()
    weight = module.network.layers[0].attention.out.weight
    optim, before = optimizer(module), weight.detach().clone()
    module.zero_grad()
    # AdamW would follow the signs of a gradient of rank 2; Muon makes both directions equal.
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 0], weight.grad[1, 1] = 1.0, 100.0
    optim.step()
    moved = (weight.detach() - before * (1 - 0.1 * 1e-2 / 4))[:2, :2]
    assert float(moved[0, 0] / moved[1, 1]) == pytest.approx(1.0, abs=0.4)
    assert moved[0, 0] < 0
    assert moved[1, 1] < 0


def test_the_schedule_reaches_both_parts_also_after_a_restart():
    module = network()
    optim = optimizer(module)
    step(module, optim, 1)
    state, kept = copy.deepcopy((optim.state_dict(), module.state_dict()))
    again = network()
    again.load_state_dict(kept)
    resumed = optimizer(again)
    resumed.load_state_dict(state)
    for seed in (2, 3):
        step(module, optim, seed)
        step(again, resumed, seed)
    rates = {group["lr"] for group in resumed.optim.param_groups}
    assert rates == {group["lr"] for group in optim.optim.param_groups}
    assert len(rates) == 1
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_settings_survive_json():
    config = CrystalBCConfig(optim_factory=MuonFactory(weight_decay=0.2))
    again = CrystalBCConfig.deserialize(config.serialize())
    assert again.optim_factory == config.optim_factory
