"""Judging policies: batched rollouts, measures, baselines."""

from crystal_gym.evaluation.baselines import MajorityPolicy, RandomPolicy
from crystal_gym.evaluation.optimum import Optimum, optimal_rewards, optimum, regret
from crystal_gym.evaluation.report import Scores, evaluate, score, text_table
from crystal_gym.evaluation.rollout import Policy, Task, rollout
from crystal_gym.evaluation.search import Candidates, beam_search, sample_fillings

__all__ = [
    "Candidates",
    "MajorityPolicy",
    "Optimum",
    "Policy",
    "RandomPolicy",
    "Scores",
    "Task",
    "beam_search",
    "evaluate",
    "optimal_rewards",
    "optimum",
    "regret",
    "rollout",
    "sample_fillings",
    "score",
    "text_table",
]
