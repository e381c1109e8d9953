"""Do double Q, longer returns, distributional heads help c-CQL? The same short training of each.

    OMP_NUM_THREADS=1 python benchmarks/cql_variants.py RUN -o FOLDER --variant double [--seed 0]

RUN is a cloning run that every variant starts from. Each is trained alike (as `make policy` trains
c-CQL, but for 500 steps) in a folder of its own below FOLDER, where an interrupted one goes on, and
fills the 2,484 validation skeletons at four targets. The gaps are the bundled surrogate's, not DFT.

Variants: `algorithm-1` is CrystalCQL as it is. `double` lets the online network choose the next
action that the target network values. `n-step` learns from whole returns (`n_steps`), so from the
discounted final reward instead of from the target network. `quantile` has 16 quantiles an
action in place of a mean (QR-DQN, arXiv:1710.10044).
"""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path

import numpy as np
import torch
from d3rlpy.models.q_functions import QRQFunctionFactory

from crystal_gym.agents import TrainConfig, cql, training
from crystal_gym.agents.cql import CrystalCQLLoss
from crystal_gym.agents.sites import site_values
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.evaluation import Task, rollout
from crystal_gym.evaluation.metrics import accuracy, validity
from crystal_gym.interrupts import noted_interrupts
from crystal_gym.oracles import Filling
from crystal_gym.oracles.surrogate import SurrogateOracle

VARIANTS = ("algorithm-1", "double", "n-step", "quantile")
TARGETS_EV = (1.12, 2.0, 3.0, 4.0)
QUANTILES = 16
WHOLE = 20  # sites of the largest crystals of MP-20


def double_target(self, batch):
    observations = batch.next_observations * (1.0 - batch.terminals)
    self._modules.targ_q_funcs.eval()
    online = self._modules.q_funcs.eval()
    with torch.no_grad():
        chosen = self._q_func_forwarder.compute_expected_q(observations).argmax(1, keepdim=True)
        values = self._targ_q_func_forwarder.compute_expected_q(observations)
    online.train()
    return values.gather(1, chosen)


def quantile_loss(self, batch, q_tpn):
    """Huber loss of quantiles for the temporal difference; the conservative term as it is."""
    network, actions = self._modules.q_funcs[0], batch.actions.long().view(-1, 1)
    conservative = site_values(network, batch).cross_entropy(actions[:, 0])
    quantiles = network(batch.observations).quantiles  # (B, 88, QUANTILES)
    taken = quantiles[torch.arange(len(actions)), actions[:, 0]]
    goal = batch.rewards + self._gamma * (1.0 - batch.terminals) * q_tpn  # (B, QUANTILES)
    error = goal[:, None, :] - taken[:, :, None]
    huber = torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5)
    middle = (torch.arange(QUANTILES, device=taken.device) + 0.5) / QUANTILES
    below = (error.detach() < 0).float()
    td_loss = ((middle[:, None] - below).abs() * huber).mean(2).sum(1).mean()
    right = quantiles.mean(2).argmax(1, keepdim=True) == actions
    loss = td_loss + self._conservative_weight * conservative
    return CrystalCQLLoss(loss, td_loss, conservative, right.float().mean())


def quantile_target(self, batch):
    observations = batch.next_observations * (1.0 - batch.terminals)
    self._modules.targ_q_funcs.eval()
    with torch.no_grad():
        quantiles = self._modules.targ_q_funcs[0](observations).quantiles
    best = quantiles.mean(2).argmax(1)
    return quantiles[torch.arange(len(best)), best]


def prepared(variant: str, config: TrainConfig, folder: Path) -> training._Run:
    if variant == "quantile":  # heads that all start as the mean that was learned
        cql.MeanQFunctionFactory = lambda: QRQFunctionFactory(n_quantiles=QUANTILES)
        load = training.load_weights
        training.load_weights = lambda path: {
            name: w.repeat_interleave(QUANTILES, 0) if "_fc." in name else w
            for name, w in load(path).items()
        }
    run = training._Run(config, folder)
    impl = run.algorithm.impl
    if variant == "double":
        impl.compute_target = types.MethodType(double_target, impl)
    elif variant == "quantile":
        impl.compute_target = types.MethodType(quantile_target, impl)
        impl.compute_loss = types.MethodType(quantile_loss, impl)
    run.resume()
    return run


def measured(run: training._Run) -> dict[str, float]:
    validation = load_trajectories("crystal-mp20-val-v0")
    task = Task.of_trajectories(validation)
    surrogate, found, gaps = SurrogateOracle(), {}, {}
    skeletons = [task.skeletons[n] for n in task.skeleton.tolist()]
    for target in TARGETS_EV:
        tokens = rollout(run.policy, task, target)
        found[f"accuracy {target:g}"] = 100 * accuracy(tokens, validation.finished)
        found[f"validity {target:g}"] = 100 * validity(tokens)
        if target in (TARGETS_EV[0], TARGETS_EV[-1]):
            fillings = [Filling(s, t[: s.n_sites]) for s, t in zip(skeletons, tokens, strict=True)]
            answers = surrogate.evaluate_fillings(fillings)
            gaps[target] = np.mean([a.band_gap_ev for a in answers])
    found["gap moves by (eV)"] = float(gaps[TARGETS_EV[-1]] - gaps[TARGETS_EV[0]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="of cloning")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(
        "c-cql",
        crystals="valid",
        steps=options.steps,
        learning_rate=2e-3,
        evaluate_every=options.steps,
        start_from=options.run,
        seed=options.seed,
        n_steps=WHOLE if options.variant == "n-step" else 1,
        precision="bfloat16",
    )
    run = prepared(options.variant, config, options.output / f"{options.variant}-{options.seed}")
    with noted_interrupts() as interrupted:
        for metrics in run.steps(interrupted):
            print(run.step, {k: round(v, 4) for k, v in metrics.items()}, flush=True)
    run.close()
    result = measured(run)
    print(options.variant, options.seed, json.dumps(result))


if __name__ == "__main__":
    main()
