"""Reports that people look at: one HTML file each, without network, made from JSON results."""

from crystal_gym.report.design import design_report
from crystal_gym.report.evaluation import evaluation_report

__all__ = ["design_report", "evaluation_report"]
