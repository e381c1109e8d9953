"""Train every discrete algorithm of d3rlpy on `crystal-mini-v0`, offline.

Prints the time each took and how its greedy policy fills the quarter of the skeletons that was held
out, for a target of 3 eV: the share of sites with the element of the source crystal, and of
fillings that pass SMACT's test, as those of a single element do. A minute and a half. Steps and
crystals are so few that this shows that all of them run, not which one is best.

python examples/d3rlpy_discrete.py [STEPS]
"""

import logging
import sys
import time

import d3rlpy
import minari
import numpy as np
import structlog
from d3rlpy import algos
from d3rlpy.logging import NoopAdapterFactory

from crystal_gym.agents import (
    CrystalCQLConfig,
    GreedyPolicy,
    MEGNetEncoderFactory,
    TransformerPolicy,
)
from crystal_gym.datasets import build_mini, load_d3rlpy
from crystal_gym.evaluation import Task, rollout
from crystal_gym.evaluation.metrics import accuracy, validity

CONFIGS = {
    "DQN": algos.DQNConfig(),
    "DoubleDQN": algos.DoubleDQNConfig(),
    "NFQ": algos.NFQConfig(),
    "DiscreteSAC": algos.DiscreteSACConfig(),
    "DiscreteBC": algos.DiscreteBCConfig(beta=0.0),  # plain cross-entropy
    "DiscreteBCQ": algos.DiscreteBCQConfig(),
    "DiscreteCQL": algos.DiscreteCQLConfig(),
    "CrystalCQL (ours)": CrystalCQLConfig(),
    "DecisionTransformer": algos.DiscreteDecisionTransformerConfig(),
}
SILENT = {"logger_adapter": NoopAdapterFactory(), "show_progress": False}


def main(steps: int = 200) -> None:
    """Train each algorithm and judge it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if "crystal-mini-v0" not in minari.list_local_datasets():
        build_mini()
    whole = load_d3rlpy("crystal-mini-v0").trajectories
    training = whole.subset(np.flatnonzero(whole.skeleton % 4 != 3))
    held_out = Task.of_skeletons(whole.skeletons, range(3, len(whole.skeletons), 4))
    print(f"{len(training.actions):,} transitions, {len(held_out)} held-out skeletons")
    for name, config in CONFIGS.items():
        looks_back = name == "DecisionTransformer"  # at the history of an episode
        config.batch_size = 4 if looks_back else 32
        for field in vars(config):
            if field.endswith("encoder_factory"):
                setattr(config, field, MEGNetEncoderFactory("paper"))
            elif field.endswith("learning_rate"):
                setattr(config, field, 1e-3)
        d3rlpy.seed(0)
        algorithm, begun = config.create(device="cpu"), time.process_time()
        buffer = load_d3rlpy(training, target_gap="uniform")
        algorithm.fit(buffer, n_steps=steps, n_steps_per_epoch=steps, **SILENT)
        took = time.process_time() - begun
        policy = TransformerPolicy(algorithm, 10.0) if looks_back else GreedyPolicy(algorithm)
        tokens = rollout(policy, held_out, target_gap=3.0)
        right, valid = accuracy(tokens, held_out.reference), validity(tokens)
        print(f"{name:20s} {took:5.1f} s   accuracy {right:6.1%}   valid {valid:6.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
