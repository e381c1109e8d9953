"""Graph-network agents for d3rlpy: encoder, conservative Q-learning, greedy policies.

Importing this package registers the encoder ``crystal_megnet`` and the algorithm ``crystal_cql``
with d3rlpy. It needs the extra ``crystal-gym[agents]``.
"""

from crystal_gym.extras import require_agents

require_agents("crystal_gym.agents")

from crystal_gym.agents.batch import GraphBatch, rows_to_batch
from crystal_gym.agents.cloning import CrystalBC, CrystalBCConfig
from crystal_gym.agents.cql import CrystalCQL, CrystalCQLConfig
from crystal_gym.agents.encoders import MEGNetEncoderFactory
from crystal_gym.agents.megnet import MEGNet
from crystal_gym.agents.optimizers import MuonFactory
from crystal_gym.agents.policy import (
    GreedyPolicy,
    load_policy,
    load_saved_policy,
    save_policy,
)
from crystal_gym.agents.schedules import WarmupCosineFactory
from crystal_gym.agents.surrogate import load_surrogate, save_surrogate
from crystal_gym.agents.surrogate_training import SurrogateConfig, train_surrogate
from crystal_gym.agents.training import TrainConfig, train
from crystal_gym.agents.transformer import SiteTransformer
from crystal_gym.agents.transformer_policy import TransformerPolicy

__all__ = [
    "CrystalBC",
    "CrystalBCConfig",
    "CrystalCQL",
    "CrystalCQLConfig",
    "GraphBatch",
    "GreedyPolicy",
    "MEGNet",
    "MEGNetEncoderFactory",
    "MuonFactory",
    "SiteTransformer",
    "SurrogateConfig",
    "TrainConfig",
    "TransformerPolicy",
    "WarmupCosineFactory",
    "load_policy",
    "load_saved_policy",
    "load_surrogate",
    "rows_to_batch",
    "save_policy",
    "save_surrogate",
    "train",
    "train_surrogate",
]
