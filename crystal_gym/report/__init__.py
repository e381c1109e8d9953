"""What people look at: one HTML file each, without network, made from results or a crystal."""

from crystal_gym.report.design import design_report
from crystal_gym.report.evaluation import evaluation_report
from crystal_gym.report.view import CrystalView, show_crystal

__all__ = ["CrystalView", "design_report", "evaluation_report", "show_crystal"]
