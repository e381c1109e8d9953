"""Rendering: text, pictures, films, screens, and crystals in 3D."""

import gc
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from io import BytesIO
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from chromium import shown
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordVideo
from made_crystals import NAMES, fill, perovskite, replaced, rocksalt

import crystal_gym  # noqa: F401  (registers the environment)
from crystal_gym.elements import symbol_to_token
from crystal_gym.envs import CrystalFillEnv, CrystalFillVectorEnv, crystal_fill
from crystal_gym.envs.rendering import Outcome, render_ansi, render_rgb, screen
from crystal_gym.envs.rendering.picture import (
    HEIGHT,
    WIDTH,
    _scene,
    _worth,
    render_png,
    standard_turn,
    turned_by,
)
from crystal_gym.envs.state import initial_state, place
from crystal_gym.graphs import breadth_first_order
from crystal_gym.oracles import Properties, Status, TableOracle
from crystal_gym.report import show_crystal
from crystal_gym.scenes import element_color, lay_out
from crystal_gym.sets import load_skeletons
from crystal_gym.testing import FixedOracle

FOCUS = (213, 94, 0)
OXYGEN = (255, 13, 13)


def act(symbol):
    return symbol_to_token(symbol) - 1


@pytest.fixture
def make(made_set, table):
    def made(**kwargs):
        settings = {"skeletons": made_set, "oracle": TableOracle(table), "target_gap": 3.0}
        return gym.make("CrystalFill-v0", **settings, **kwargs)

    return made


@pytest.fixture
def no_screen(monkeypatch):
    monkeypatch.setattr(screen, "_has_windows", lambda: False)


@pytest.fixture
def windows(monkeypatch):
    """Give matplotlib windows that nobody sees; return a function that gives the open ones."""
    import matplotlib.pyplot as plt

    before = plt.get_backend()
    plt.switch_backend("module://stub_windows")
    yield lambda: [plt.figure(number).canvas for number in plt.get_fignums()]
    plt.close("all")
    plt.switch_backend(before)


def states_of(skeleton, symbols=None):
    """Return the states of an episode on a skeleton."""
    order = breadth_first_order(skeleton.neighbours, 0, None)
    states = [initial_state(skeleton, order, 3.0)]
    for site in order:
        states.append(place(states[-1], int(skeleton.reference[site]) - 1))
    return states


def supercell(*repeats):
    (skeleton,) = load_skeletons([perovskite() * list(repeats)])
    return skeleton


def pixels(frame, color):
    return int((frame == color).all(axis=2).sum())


def crystal_in(frame):
    """Return the part of a frame between the words above and below."""
    return frame[62:375]


def reddish(frame):
    red, green, blue = np.moveaxis(frame.astype(int), 2, 0)
    return int(((red > 200) & (abs(green - blue) < 20) & (red - green > 100)).sum())


# -- text ------------------------------------------------------------------------------------------


def test_text_shows_the_cell_the_formula_the_order_and_the_site_in_focus(make):
    env = make(render_mode="ansi")
    env.reset(seed=0, options={"skeleton": "perovskite", "start_site": 3})
    env.step(act("Sr"))
    lines = env.render().splitlines()
    assert lines[0] == "Sr□4   1 of 5 sites filled, target gap 3 eV"
    assert lines[1].startswith("perovskite   a 3.91  b 3.91  c 3.91 Å   α 90  β 90  γ 90°")
    assert lines[1].endswith("space group 221")
    assert lines[2].split() == ["Sr", "[?]", "·", "·", "·"]
    assert [line[0] for line in lines[4:]] == [" ", ">", " ", " ", " "]
    assert lines[4].split()[1] == "Sr"
    assert lines[4].endswith("12 empty")
    assert lines[5].endswith("4 Sr, 8 empty") or lines[5].endswith("4 Sr, 2 empty")


def test_text_ends_with_what_came_of_the_crystal(make, table):
    env = make(render_mode="ansi")
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    _, reward, *_ = fill(env, [str(s.specie) for s in rocksalt()][::-1])
    known = table.properties(NAMES.index("rocksalt"))
    last = env.render().splitlines()[-1]
    assert last.startswith(f"gap {known.band_gap_ev:.2f} eV   formation energy ")
    assert last.endswith(f"reward {reward:.3g}")
    env.reset(seed=0)
    assert "reward" not in env.render()


def test_nothing_is_left_of_an_outcome_when_the_next_crystal_has_none(made_set):
    class OnlyOnce(FixedOracle):
        def evaluate(self, structures):
            if self.asked:
                raise KeyboardInterrupt
            return super().evaluate(structures)

    for many in (False, True):
        oracle = OnlyOnce(Properties(-10.0, -1.0, 2.0))
        settings = {"skeletons": made_set, "oracle": oracle, "render_mode": "ansi"}
        env = CrystalFillVectorEnv(1, **settings) if many else CrystalFillEnv(**settings)
        action = np.array([5]) if many else 5
        env.reset(seed=0, options={"skeleton": "rocksalt"})
        env.step(action)
        env.step(action)
        assert "reward" in str(env.render())
        env.reset(seed=0, options={"skeleton": "rocksalt"})
        env.step(action)
        with pytest.raises(KeyboardInterrupt):
            env.step(action)
        assert "all sites are filled" in str(env.render())
        assert "reward" not in str(env.render())


def test_text_says_why_there_are_no_properties(made_set):
    outcome = Outcome(0.0, "not_converged", Properties(status=Status.NOT_CONVERGED))
    text = render_ansi(states_of(made_set[0])[-1], outcome)
    assert text.endswith("status: not converged   reward 0")


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_of_an_episode_has_the_same_size_and_shows_something_new(made_set, name):
    frames = [render_rgb(state) for state in states_of(made_set[NAMES.index(name)])]
    assert {(f.shape, f.dtype.name) for f in frames} == {((HEIGHT, WIDTH, 3), "uint8")}
    for before, after in pairwise(frames):
        assert (before != after).any()


def test_a_frame_is_drawn_the_same_again(made_set):
    state = states_of(made_set[3])[2]
    np.testing.assert_array_equal(render_rgb(state), render_rgb(state))


def test_the_focus_is_marked_until_the_last_site(made_set):
    states = states_of(made_set[NAMES.index("perovskite")])
    for part in (crystal_in, lambda frame: frame[375:]):  # the row of sites
        marked = [pixels(part(render_rgb(state)), FOCUS) for state in states]
        assert min(marked[:-1]) > 50
        assert marked[-1] == 0


def test_elements_have_jmol_s_colours(made_set):
    empty, *_, full = states_of(made_set[NAMES.index("perovskite")])
    assert element_color("O") == "#ff0d0d"
    assert pixels(render_rgb(empty), OXYGEN) == reddish(crystal_in(render_rgb(empty))) == 0
    assert pixels(render_rgb(full), OXYGEN) > 500
    assert reddish(crystal_in(render_rgb(full))) > 1000


def test_the_view_does_not_depend_on_the_elements():
    symbols = (["Sr", "Ti", "O", "O", "O"], ["Cs", "H", "U", "N", "F"])
    first, second = (load_skeletons([replaced(perovskite(), s)])[0] for s in symbols)
    one, other = (initial_state(s, np.arange(5), 3.0) for s in (first, second))
    top = slice(80, None)  # the name of the skeleton stands above
    np.testing.assert_array_equal(render_rgb(one)[top], render_rgb(other)[top])


@pytest.mark.parametrize("repeats", [(2, 2, 1), (2, 2, 3), (1, 1, 12)], ids=["20", "60", "long"])
def test_large_and_long_cells_fit_into_the_picture(repeats):
    frame = render_rgb(states_of(supercell(*repeats))[-1])
    # Nothing of the crystal at the edges of the picture.
    assert (frame[:, :4] == 255).all()
    assert (frame[:, -4:] == 255).all()
    assert (frame[:4] == 255).all()
    assert (frame[-4:] == 255).all()


def test_pictures_need_neither_pyplot_nor_a_display():
    code = """
        import sys, gymnasium as gym, crystal_gym
        env = gym.make("CrystalFill-v0", render_mode="rgb_array")
        env.reset(seed=0)
        print(env.render().shape, "matplotlib.pyplot" in sys.modules)
    """
    bare = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    said = subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], env=bare)
    assert said.decode().strip() == f"({HEIGHT}, {WIDTH}, 3) False"


def test_making_an_environment_does_not_load_matplotlib():
    code = (
        "import sys, gymnasium as gym, crystal_gym; gym.make('CrystalFill-v0').reset(seed=0);"
        "print([m for m in ('matplotlib', 'ase') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_views_are_rotations(made_set):
    for skeleton in made_set:
        turn = standard_turn(skeleton)
        for one in (turn, turned_by(turn, 0.3, -1.2)):
            np.testing.assert_allclose(one @ one.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(one) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["rocksalt", "fluorite", "perovskite"])
def test_the_chosen_view_is_better_than_one_along_an_axis(made_set, name):
    skeleton = made_set[NAMES.index(name)]
    scene = _scene(skeleton)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        assert _worth(scene, standard_turn(skeleton)) > 1.2 * _worth(scene, np.eye(3)[order])


def test_dragging_to_the_right_moves_what_is_near_to_the_right():
    near = turned_by(np.eye(3), 0.1, 0.0) @ [0, 0, 1]
    assert near[0] > 0.05
    assert (turned_by(np.eye(3), 0.0, 0.1) @ [0, 0, 1])[1] > 0.05


def test_sticks_are_bonds_of_the_graph(made_set):
    for skeleton in made_set:
        scene = _scene(skeleton)
        ends = scene.points[scene.bonds]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert all(np.abs(skeleton.edge_length - x).min() < 1e-3 for x in length)
    assert len(_scene(made_set[NAMES.index("rocksalt")]).bonds) == 6


def test_coordinates_outside_of_the_cell_change_no_bond(made_set):
    skeleton = made_set[NAMES.index("triclinic")]
    away = np.array([[1, 0, 0], [0, -2, 0], [0, 0, 0], [0, 0, 3], [-1, 1, 0], [0, 0, 0]])
    source, target = skeleton.edge_index
    image = skeleton.edge_image + away[source] - away[target]
    inside = lay_out(skeleton.lattice, skeleton.frac_coords, (skeleton.edge_index, image * 0))
    there = lay_out(skeleton.lattice, skeleton.frac_coords + away, (skeleton.edge_index, image))
    here = _scene(skeleton)
    np.testing.assert_array_equal(there.bonds, here.bonds)
    assert inside.bonds.tolist() != here.bonds.tolist()


def test_copies_on_opposite_faces_are_drawn(made_set):
    scene = _scene(made_set[NAMES.index("perovskite")])
    assert np.bincount(scene.site).tolist() in ([2, 2, 2, 8, 1], [8, 1, 2, 2, 2])


# -- Gymnasium's rules -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ansi", "rgb_array", "human"])
@pytest.mark.usefixtures("no_screen")
def test_check_env_passes_with_its_render_checks(make, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(make(render_mode=mode).unwrapped)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array", "human"])
@pytest.mark.usefixtures("windows")
def test_rendering_before_reset_is_refused(make, mode):
    env = make(render_mode=mode)
    with pytest.raises(ResetNeeded):
        env.render()
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.unwrapped.render()


def test_rendering_without_a_mode_warns_and_returns_nothing(make):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="with one of ansi, rgb_array, human"):
        assert env.render() is None


def test_an_unknown_render_mode_is_refused():
    with pytest.raises(ValueError, match="render_mode='film' is unknown"):
        CrystalFillEnv(3.0, render_mode="film")


@pytest.mark.filterwarnings("ignore")  # pipes to ffmpeg that moviepy and imageio leave open
def test_record_video_makes_a_film_of_an_episode(make, tmp_path):
    pytest.importorskip("moviepy")
    from imageio_ffmpeg import count_frames_and_secs, read_frames

    folder = tmp_path / "films"
    env = RecordVideo(make(render_mode="rgb_array"), str(folder), episode_trigger=lambda n: True)
    env.reset(seed=0, options={"skeleton": "perovskite"})
    fill(env, ["Sr", "Ti", "O", "O", "O"])
    last = env.unwrapped.render()
    env.close()
    (film,) = folder.glob("*.mp4")
    assert count_frames_and_secs(film) == (6, 3.0)
    frames = read_frames(film)
    assert next(frames)["size"] == (WIDTH, HEIGHT)
    *_, end = (np.frombuffer(f, np.uint8).reshape(HEIGHT, WIDTH, 3) for f in frames)
    assert np.abs(end.astype(int) - last).mean() < 5
    del env, frames
    gc.collect()  # here, not in another test


# -- screens ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_screen")
def test_without_a_screen_text_is_printed_and_one_sentence_says_so(make, capsys):
    with pytest.warns(UserWarning, match="no screen and no notebook.*render_mode='rgb_array'"):
        env = make(render_mode="human")
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    fill(env, ["Na", "Cl"])
    assert env.render() is None
    texts = capsys.readouterr().out.strip().split("\n\n")
    assert [text.split("   ")[1][:6] for text in texts] == ["0 of 2", "1 of 2", "2 of 2"]
    assert texts[-1].splitlines()[-1].startswith("gap ")
    env.close()


def test_a_window_follows_the_episode_and_turns_when_dragged(make, windows):
    from matplotlib.backend_bases import MouseEvent

    env = make(render_mode="human")
    assert windows() == []
    env.reset(seed=0, options={"skeleton": "perovskite"})
    (canvas,) = windows()
    assert canvas.is_shown
    pictures = [np.asarray(canvas.buffer_rgba()).copy()]
    env.step(act("O"))
    assert env.render() is None
    pictures.append(np.asarray(canvas.buffer_rgba()).copy())
    for name, x in (("button_press", 300), ("motion_notify", 380), ("button_release", 380)):
        canvas.callbacks.process(f"{name}_event", MouseEvent(f"{name}_event", canvas, x, 200, 1))
    pictures.append(np.asarray(canvas.buffer_rgba()).copy())
    for before, after in pairwise(pictures):
        assert (before != after).any()
    canvas.callbacks.process(
        "motion_notify_event", MouseEvent("motion_notify_event", canvas, 100, 200)
    )
    np.testing.assert_array_equal(canvas.buffer_rgba(), pictures[-1])
    assert canvas.waited == [0.5, 0.5]
    env.close()
    env.close()
    assert windows() == []


def test_a_window_that_was_closed_opens_again(make, windows):
    import matplotlib.pyplot as plt

    env = make(render_mode="human")
    env.reset(seed=0)
    plt.close("all")
    env.reset(seed=1)
    assert len(windows()) == 1


@pytest.mark.slow
def test_a_real_window_opens_on_a_display(tmp_path):
    pytest.importorskip("tkinter")
    if shutil.which("xvfb-run") is None:
        pytest.skip("no xvfb-run here: apt-get install xvfb")
    code = """
        import gymnasium as gym, crystal_gym
        env = gym.make("CrystalFill-v0", target_gap=3.0, render_mode="human")
        env.reset(seed=0)
        env.step(5)
        window = env.unwrapped._screen
        print(type(window).__name__, type(window._figure.canvas).__name__)
        env.close()
    """
    (tmp_path / "play.py").write_text(textwrap.dedent(code))
    server = ["xvfb-run", "-a", "-s", "-screen 0 800x600x24 -noreset"]
    said = subprocess.check_output(
        [*server, sys.executable, "-W", "error", str(tmp_path / "play.py")], text=True
    )
    assert said.strip() == "Window FigureCanvasTkAgg"


@pytest.mark.parametrize("backend", ["agg", "tkagg"])
def test_a_backend_without_a_display_is_no_window(backend):
    code = "from crystal_gym.envs.rendering.screen import _has_windows as f; print(f())"
    bare = {n: v for n, v in os.environ.items() if n not in ("DISPLAY", "WAYLAND_DISPLAY")}
    said = subprocess.check_output(
        [sys.executable, "-c", code], text=True, env={**bare, "MPLBACKEND": backend}
    )
    assert said.strip() == "False"


def test_a_backend_that_cannot_be_loaded_is_no_window(monkeypatch):
    import matplotlib.pyplot as plt

    def refuse(name):
        raise ImportError("Cannot load backend 'tkagg'")

    monkeypatch.setattr(plt, "get_backend", lambda: "tkagg")
    monkeypatch.setattr(plt, "switch_backend", refuse)
    assert screen._has_windows() is False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_notebook_shows_one_picture_below_each_cell_that_acts(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [
        """
        import gymnasium as gym, crystal_gym
        env = gym.make("CrystalFill-v0", target_gap=3.0, render_mode="human")
        env.reset(seed=0, options={"skeleton": "MgO-rocksalt"})
        env.step(5);
        """,
        "env.step(7);",
        "from crystal_gym.report import show_crystal; show_crystal(env)",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    )
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    first, second, third = ([list(o["data"]) for o in c["outputs"]] for c in notebook["cells"])
    assert first == second == [["image/png", "text/plain"]]
    assert sorted(third[0]) == ["text/html", "text/plain"]
    pictures = [c["outputs"][0]["data"]["image/png"] for c in notebook["cells"][:2]]
    assert pictures[0] != pictures[1]


def test_the_picture_of_a_notebook_is_fine_enough_for_dense_screens(made_set):
    from PIL import Image

    file = BytesIO(render_png(states_of(made_set[0])[0]))
    assert Image.open(file).size == (2 * WIDTH, 2 * HEIGHT)


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "draw"), [("ansi", render_ansi), ("rgb_array", render_rgb)])
def test_a_vector_environment_renders_as_single_ones_do(made_set, table, mode, draw):
    settings = {"skeletons": made_set, "oracle": TableOracle(table), "target_gap": 3.0}
    many = CrystalFillVectorEnv(3, render_mode=mode, **settings)
    singles = [CrystalFillEnv(render_mode=mode, **settings) for _ in range(3)]
    many.reset(seed=5, options={"skeleton": "rocksalt"})
    for i, env in enumerate(singles):
        env.reset(seed=5 + i, options={"skeleton": "rocksalt"})
    for symbols in (["Na", "Cl", "O"], ["Cl", "Na", "O"]):
        many.step(np.array([act(s) for s in symbols]))
        for env, symbol in zip(singles, symbols, strict=True):
            env.step(act(symbol))
        for seen, env in zip(many.render(), singles, strict=True):
            assert np.array_equal(seen, env.render())
    many.step(np.zeros(3, dtype=int))  # they start again
    assert "reward" not in str(many.render()[0])


def test_a_vector_environment_says_what_it_cannot_render(made_set):
    with pytest.raises(ValueError, match="'human' is for a single environment: expected 'ansi'"):
        CrystalFillVectorEnv(2, skeletons=made_set, render_mode="human")
    many = CrystalFillVectorEnv(2, skeletons=made_set, render_mode="ansi")
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        many.render()
    many = CrystalFillVectorEnv(2, skeletons=made_set)
    many.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert many.render() is None
    assert crystal_fill.CrystalFillEnv.metadata["render_modes"] == ["ansi", "rgb_array", "human"]


# -- 3D --------------------------------------------------------------------------------------------


def test_a_crystal_in_three_dimensions(make, tmp_path):
    env = make()
    env.reset(seed=0, options={"skeleton": "perovskite", "start_site": 3})
    env.step(act("Sr"))
    view = show_crystal(env)
    assert view.title == "Sr□4"
    view.write(tmp_path / "crystal.html")
    (tmp_path / "cell.html").write_text(
        f"<title>notebook</title><link rel='icon' href='data:,'>{view._repr_html_()}"
        "<script>document.documentElement.dataset.drawn = 'yes'</script>"
    )
    with shown(tmp_path / "crystal.html") as page:
        legend = page.locator(".scene .legendtext").all_text_contents()
        assert sorted(legend) == ["Sr", "empty"]
        assert page.locator("select").count() == 0
    with shown(tmp_path / "cell.html") as page:
        inside = page.frame_locator("iframe")
        inside.locator("html[data-drawn=yes]").wait_for(timeout=120_000)
        assert inside.locator(".scene canvas").count() > 0


def test_what_can_be_shown_in_three_dimensions():
    from pymatgen.io.ase import AseAtomsAdaptor

    assert show_crystal(rocksalt()).title == "NaCl"
    assert show_crystal(AseAtomsAdaptor.get_atoms(rocksalt()), "salt & <b>").title == "salt & <b>"
    with pytest.raises(TypeError, match="a structure of type str is not understood"):
        show_crystal("NaCl")
