"""Where ``render_mode="human"`` shows an episode: a window, a notebook, else the terminal."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Protocol

import gymnasium as gym

from crystal_gym.envs.rendering.picture import paint, render_png, standard_turn, turned_by
from crystal_gym.envs.rendering.text import Outcome, render_ansi
from crystal_gym.envs.state import State

__all__ = ["Screen", "open_screen"]

_WITHOUT_WINDOWS = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})
"""Backends of matplotlib that write files."""


class Screen(Protocol):
    """What shows states to a person, one after the other."""

    def show(self, state: State, outcome: Outcome | None) -> None:
        """Show a state in place of the one before."""

    def close(self) -> None:
        """Take away what is left open; harmless when repeated."""


def open_screen(seconds: float) -> Screen:
    """Return the screen that works here: a notebook's output, a window, or the terminal.

    Args:
        seconds: How long a state is shown before the program goes on.

    Returns:
        Its ``show`` takes a state and the outcome; the terminal shows states without a pause.
    """
    shell = _notebook()
    if shell is not None:
        return NotebookOutput(shell, seconds)
    if _has_windows():
        return Window(seconds)
    gym.logger.warn(
        "render_mode='human' found no screen and no notebook, so it prints text; for pictures use "
        "render_mode='rgb_array' (gymnasium.wrappers.RecordVideo makes a film of them), or run it "
        "in Jupyter, or where matplotlib can open a window (a display, and a toolkit such as "
        "python3-tk or `pip install PySide6`)"
    )
    return Terminal()


def _notebook() -> Any | None:
    """Return the IPython shell if it belongs to a notebook or another front end with pictures."""
    ipython = sys.modules.get("IPython")  # whoever runs in a notebook has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _has_windows() -> bool:
    """Return whether matplotlib is here and can open a window; it writes files where it cannot."""
    try:
        import matplotlib.pyplot as plt

        backend = plt.get_backend()
        if not plt.get_fignums():  # a backend that was named is first tried here
            plt.switch_backend(backend)
    except ImportError:
        return False
    return backend.lower() not in _WITHOUT_WINDOWS and "inline" not in backend


class Window:
    """A window of matplotlib's; the crystal turns when it is dragged.

    Args:
        seconds: How long a state is shown before the program goes on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._figure: Any = None
        self._shown: tuple[State, Outcome | None] | None = None
        self._turn: Any = None
        self._held: tuple[float, float] | None = None

    def show(self, state: State, outcome: Outcome | None) -> None:
        """Draw a state, and let the window answer to the mouse for a while."""
        import matplotlib.pyplot as plt

        if self._shown is None or self._shown[0].skeleton is not state.skeleton:
            self._turn = standard_turn(state.skeleton)
        self._shown = (state, outcome)
        if self._figure is None or not plt.fignum_exists(self._figure.number):
            self._figure = plt.figure("CrystalFill-v0", figsize=(6.4, 4.8))
            connect = self._figure.canvas.mpl_connect
            connect("button_press_event", self._hold)
            connect("motion_notify_event", self._drag)
            connect("button_release_event", self._let_go)
            self._figure.show()
        self._draw()
        self._figure.canvas.start_event_loop(self._seconds)

    def close(self) -> None:
        """Close the window."""
        if self._figure is not None:
            import matplotlib.pyplot as plt

            plt.close(self._figure)
            self._figure = None

    def _draw(self) -> None:
        if self._shown is not None:
            paint(self._figure, *self._shown, self._turn)
            self._figure.canvas.draw_idle()

    def _hold(self, event: Any) -> None:
        self._held = (event.x, event.y)

    def _let_go(self, event: Any) -> None:
        self._held = None

    def _drag(self, event: Any) -> None:
        if self._held is not None:
            width = self._figure.bbox.width
            right, up = (event.x - self._held[0]) / width, (event.y - self._held[1]) / width
            self._held = (event.x, event.y)
            self._turn = turned_by(self._turn, math.pi * right, math.pi * up)
            self._draw()


class NotebookOutput:
    """A picture below the cell that runs, replaced at every step.

    Args:
        shell: IPython's.
        seconds: How long a state is shown before the program goes on.
    """

    def __init__(self, shell: Any, seconds: float) -> None:
        self._shell, self._seconds = shell, seconds
        self._cell: int | None = None
        self._handle: Any = None

    def show(self, state: State, outcome: Outcome | None) -> None:
        """Show a state below the running cell."""
        from IPython.display import Image, display

        picture = Image(data=render_png(state, outcome))
        if self._cell == self._shell.execution_count:
            self._handle.update(picture)
        else:
            self._cell = self._shell.execution_count
            self._handle = display(picture, display_id=True)
        time.sleep(self._seconds)

    def close(self) -> None:
        """Leave the last picture where it is."""


class Terminal:
    """Text on standard output."""

    def show(self, state: State, outcome: Outcome | None) -> None:
        """Print a state."""
        sys.stdout.write(render_ansi(state, outcome) + "\n\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is open."""
