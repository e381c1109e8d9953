"""Pictures of a state: text, an image, and a screen that follows an episode."""

from crystal_gym.envs.rendering.picture import render_rgb
from crystal_gym.envs.rendering.screen import Screen, open_screen
from crystal_gym.envs.rendering.text import Outcome, render_ansi

__all__ = ["Outcome", "Screen", "open_screen", "render_ansi", "render_rgb"]
