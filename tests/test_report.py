"""The report pages in a real browser."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chromium import shown
from made_crystals import perovskite, rocksalt, wurtzite

from crystal_gym.cli import main
from crystal_gym.report import design_report
from crystal_gym.report.crystals import scene
from crystal_gym.report.design import charges_text
from crystal_gym.report.page import figure, section, table, write_page
from crystal_gym.report.periodic_table import periodic_table
from crystal_gym.structures import site_symbols


def prediction(gap, **changes):
    return {
        "band_gap_ev": gap,
        "band_gap_std_ev": None if gap is None else 0.3,
        "formation_energy_ev_per_atom": None if gap is None else -1.5,
        "formation_energy_std_ev_per_atom": None if gap is None else 0.1,
        "unlike_training": False,
        "status": "ok",
        "provenance": "made up",
        **changes,
    }


@pytest.fixture
def results():
    structure = perovskite()
    candidates = []
    for rank, symbols in enumerate((["Ca", "Ti", "O", "O", "O"], ["K", "Nb", "O", "O", "O"]), 1):
        candidates.append(
            {
                "rank": rank,
                "formula": "".join(symbols[:2]) + "O3",
                "charges": {symbols[0]: 2, symbols[1]: 4, "O": -2},
                "common_charges": rank == 1,
                "novel": rank == 2,
                "log_probability": -1.0,
                "expected_reward": 9.0,
                "hit_probability": 0.5,
                "predicted": prediction(2.5 + rank / 10, unlike_training=rank == 2),
                "calculated": {**prediction(2.0), "status": "ok"} if rank == 1 else None,
                "relaxed": None,
                "symbols": symbols,
                "cif": f"{rank:03d}.cif",
            }
        )
    return {
        "kind": "design",
        "source": {
            "name": "<b>SrTiO3</b>",
            "lattice": structure.lattice.matrix.tolist(),
            "frac_coords": structure.frac_coords.tolist(),
            "symbols": site_symbols(structure),
            "predicted": prediction(None),
        },
        "goal": "3 eV",
        "window": [2.75, 3.25],
        "settings": {"target_gap": [3.0, 3.0], "seed": 0},
        "policy": "bundled",
        "surrogate": "SurrogateOracle()",
        "dft": "EspressoOracle(labels)",
        "versions": {"python": "3"},
        "seconds": 1.0,
        "candidates": candidates,
    }


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_design_report_in_a_browser(results, tmp_path, width, dark):
    path = tmp_path / "report.html"
    design_report(json.loads(json.dumps(results)), path)
    assert path.stat().st_size < 5_000_000
    with shown(path, width=width, dark=dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        text = page.inner_text("main")
        assert "<b>SrTiO3</b>" in text  # names are text, never markup
        assert "they are estimates, not DFT" in text.replace("\n", " ")
        for header in page.locator("section:first-of-type th").all_inner_texts():
            if "gap" in header.lower() or "energy" in header.lower():
                assert "surrogate" in header or "DFT" in header
        assert page.locator("section:first-of-type tbody tr").count() == 2
        assert page.locator(".plot .main-svg").count() > 0
        assert page.locator(".scatterlayer .trace").count() == 3  # new, known, DFT
        # Balls are drawn: their colours fill part of the canvas.
        assert page.locator(".scene canvas").count() == 2
        pixels = page.evaluate(
            """async () => {
                const image = new Image();
                image.src = await Plotly.toImage(document.querySelector(".scene"),
                    { format: "png", width: 300, height: 300 });
                await image.decode();
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = 300;
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                const data = context.getImageData(0, 0, 300, 300).data;
                let red = 0;
                for (let i = 0; i < data.length; i += 4)
                  red += data[i + 3] > 0 && data[i] > 90 && data[i] > 2 * data[i + 1];
                return red;
            }"""
        )
        assert pixels > 100  # oxygen
        # By the keyboard: to the next crystal and round to the first.
        shown_name = page.locator(".viewer .shown")
        assert shown_name.inner_text().startswith("1. CaTiO3")
        page.locator("button[data-step='1']").focus()
        page.keyboard.press("Enter")
        assert shown_name.inner_text().startswith("2. KNbO3")
        page.keyboard.press("Enter")
        assert shown_name.inner_text().startswith("1. CaTiO3")
        page.emulate_media(color_scheme="light" if dark else "dark")
        page.wait_for_timeout(300)


def test_a_page_without_figures_and_hostile_text(tmp_path):
    path = tmp_path / "page.html"
    hostile = "</script><script>throw new Error('no')</script>"
    plot = figure([{"type": "bar", "x": [hostile], "y": [1]}], {}, hostile)
    write_page(
        path, hostile, "<p>lead</p>", [section(hostile, table([hostile], [["1"]], "t"), plot)]
    )
    with shown(path) as page:
        assert page.inner_text("h1") == hostile
        assert page.inner_text("h2") == hostile
        assert page.locator(".plot .bars path").count() == 1


def leaves(value, path=()):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path


def test_no_value_of_a_given_design_json_becomes_markup(results, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    (tmp_path / "design.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path)]) == 0
    plain = json.loads(json.dumps(results))
    shown_in = 0
    for path in leaves(plain):
        changed = json.loads(json.dumps(plain))
        *outer, last = path
        place = changed
        for key in outer:
            place = place[key]
        place[last] = hostile
        (tmp_path / "design.json").write_text(json.dumps(changed))
        (tmp_path / "report.html").unlink(missing_ok=True)
        if main(["report", str(tmp_path)]) == 0:
            text = (tmp_path / "report.html").read_text()
            assert "<img" not in text, path
            shown_in += "img src" in text
    assert shown_in >= 10  # names, formulas, charges, settings: most text is shown


def test_a_crystal_called_like_a_script_is_shown_by_its_name(results, tmp_path):
    name = "<script>document.title='owned'</script>"
    results["source"]["name"] = name
    results["candidates"][0]["formula"] = "<img src=x onerror=document.title='owned'>"
    design_report(results, tmp_path / "report.html")
    with shown(tmp_path / "report.html") as page:
        assert page.inner_text("h1") == f"Compounds designed on {name}"
        page.wait_for_timeout(300)
        assert page.title() == f"Compounds designed on {name}"
        assert page.locator("table img").count() == 0


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"source": 1}', "[" * 100_000])
def test_results_that_no_command_wrote_are_one_sentence(tmp_path, capsys, text):
    for name in ("design.json", "results.json"):
        (tmp_path / name).write_text(text)
        assert main(["report", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"crystal-gym: {tmp_path} cannot be shown (")
        assert said.count("\n") == 1
        (tmp_path / name).unlink()


def test_scenes_show_whole_cells():
    structure = perovskite()
    drawn = scene(
        structure.lattice.matrix, structure.frac_coords, site_symbols(structure), "perovskite"
    )
    elements = [a["element"] for a in drawn["atoms"]]
    # Sr at a corner is drawn at all eight, O on faces at both of each, Ti in the middle once.
    assert {e: elements.count(e) for e in set(elements)} == {"Sr": 8, "O": 6, "Ti": 1}
    assert len(drawn["cell"]) == 12
    lengths = [np.linalg.norm(np.subtract(a, b)) for a, b in drawn["bonds"]]
    assert min(lengths) == pytest.approx(structure.lattice.a / 2, abs=0.01)
    for other in (rocksalt(), wurtzite()):
        bonds = scene(other.lattice.matrix, other.frac_coords, site_symbols(other), "")["bonds"]
        assert bonds


def test_periodic_table_counts_every_element_once():
    text = periodic_table({"O": 3, "La": 1}, "uses")
    assert text.count('role="listitem"') == 103
    assert "Oxygen: 3" in text
    assert "Lanthanum: 1" in text
    assert text.count("background:") == 2


def test_charges_read_as_chemists_write_them():
    assert charges_text({"O": -2, "Ti": 4, "Sr": 2}) == "Ti4+ Sr2+ O2−"
    assert charges_text({"Na": 1, "Cl": -1}) == "Na+ Cl−"
    assert charges_text({"Cu": 0}) == "Cu0"
    assert charges_text({"Ca": 1, "F": -1}, common=False) == "? Ca+ F−"
    assert charges_text(None) == "none"
