"""Judging policies: batched rollouts, measures, baselines."""

from crystal_gym.evaluation.baselines import MajorityPolicy, RandomPolicy
from crystal_gym.evaluation.optimum import Optimum, optimal_rewards, optimum, regret
from crystal_gym.evaluation.report import Scores, evaluate, score, text_table
from crystal_gym.evaluation.rollout import Policy, Task, rollout

__all__ = [
    "MajorityPolicy",
    "Optimum",
    "Policy",
    "RandomPolicy",
    "Scores",
    "Task",
    "evaluate",
    "optimal_rewards",
    "optimum",
    "regret",
    "rollout",
    "score",
    "text_table",
]
