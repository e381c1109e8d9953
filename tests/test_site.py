"""The documentation site: built as `make docs` builds it, then read and looked at."""

import inspect
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import shown
from filelock import FileLock

pytest.importorskip("furo")
pytest.importorskip("d3rlpy")

ROOT = Path(__file__).resolve().parents[1]
PHONE, DESK = 390, 1280
LOADED = "document.readyState === 'complete'"


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """Return the folder of the site, built once for all processes of a test run."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary if worker_id == "master" else temporary.parent) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
            built = subprocess.run(
                [*command, "-d", f"{folder}-doctrees", str(ROOT / "docs"), str(folder)],
                capture_output=True,
                text=True,
            )
            assert built.returncode == 0, built.stderr
            (folder / "built").touch()
    return folder


class _Page(HTMLParser):
    """Collects what a page links to and what it loads by itself."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.names = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.names |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif values.get("href") or values.get("src") or values.get("data"):
            loaded = values.get("href") or values.get("src") or values.get("data")
            self.loads.append(loaded)


def pages(site):
    return sorted(site.rglob("*.html"))


def test_a_page_asks_no_other_host_for_anything(site):
    for path in pages(site):
        if path.name != "report.html":  # looked at in test_report.py
            assert [u for u in _Page(path).loads if urlsplit(u).netloc] == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text("utf-8")), path


def test_every_link_within_the_site_leads_somewhere(site):
    names = {}
    for path in pages(site):
        for link in _Page(path).links:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            assert target.exists(), f"{path}: {link}"
            if parts.fragment and target.suffix == ".html" and target.name != "report.html":
                if target not in names:
                    names[target] = _Page(target).names
                assert unquote(parts.fragment) in names[target], f"{path}: {link}"


def test_the_report_of_the_evaluation_is_a_page_of_the_site(site):
    assert "results/report.html" in _Page(site / "results.html").links
    written = (ROOT / "docs" / "results" / "evaluation.html").read_bytes()
    assert (site / "results" / "report.html").read_bytes() == written


PUBLIC = ("envs", "oracles", "rewards", "datasets", "agents", "evaluation", "testing")


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_describes_every_public_name(site, module):
    found = _Page(site / "api" / f"{module}.html").names
    for name in import_module(f"crystal_gym.{module}").__all__:
        assert f"crystal_gym.{module}.{name}" in found


def test_the_environment_page_is_the_docstring_of_the_class(site):
    from crystal_gym.envs import CrystalFillEnv

    headings = re.findall(r"^## (.*)$", inspect.getdoc(CrystalFillEnv), re.MULTILINE)
    text = (site / "environment.html").read_text("utf-8")
    places = [text.index(f"<h2>{heading}<a") for heading in headings]
    assert len(headings) >= 8
    assert places == sorted(places)
    assert "insert:" not in text


def test_formulas_need_no_script(site):
    text = (site / "api" / "rewards.html").read_text("utf-8")
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
    assert "mathjax" not in text.lower()


def test_pictures_are_drawn_by_our_own_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "scripts" / "draw_pictures.py"), run_name="__main__")
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert all(name.replace(".svg", "-dark.svg") in drawn for name in drawn if "-dark" not in name)


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        *(("index", width, dark) for width in (PHONE, DESK) for dark in (False, True)),
        ("environment", PHONE, False),
        ("environment", DESK, True),
        ("concepts", PHONE, True),
        ("api/oracles", PHONE, False),
    ],
)
def test_a_page_looks_as_it_should(site, name, width, dark):
    with shown(site / f"{name}.html", width=width, dark=dark, ready=LOADED) as page:
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(red) < 60) == dark
        for picture in page.locator("article img").all():
            twin_of_dark = "only-dark" in picture.get_attribute("class")
            assert picture.is_visible() == (twin_of_dark == dark)
            if picture.is_visible():
                picture.scroll_into_view_if_needed()
                assert picture.evaluate("image => image.naturalWidth") > 0


def test_the_search_finds_pages_without_a_server(site):
    with shown(site / "search.html", ready=LOADED) as page:
        page.goto((site / "search.html").as_uri() + "?q=skeleton")
        page.wait_for_selector("#search-results li")
