"""A backend of matplotlib whose windows nobody sees: ``module://stub_windows``."""

from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg


class FigureManager(FigureManagerBase):
    def show(self):
        self.canvas.is_shown = True


class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager
    is_shown = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.waited = []

    def draw_idle(self, *arguments, **options):
        self.draw()

    def start_event_loop(self, timeout=0):
        self.waited.append(timeout)
