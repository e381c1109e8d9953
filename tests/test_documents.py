"""What the documents show must run."""

import ast
import contextlib
import io
import re
import shutil

import pytest
from documents import ROOT, RUN, blocks, commands, run_document

from crystal_gym.commands.arguments import build_parser
from crystal_gym.datasets import build_mini

DOCUMENTS = ["README.md"] + sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
)


@pytest.fixture(scope="module")
def built_mini(tmp_path_factory):
    pytest.importorskip("d3rlpy")
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        build_mini()
    return folder


@pytest.fixture
def with_mini(built_mini, empty_minari, tmp_path, monkeypatch):
    shutil.copytree(built_mini, empty_minari, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # d3rlpy writes its logs where it runs


# Some train with d3rlpy's fit(), whose progress bar and logger leave files to the collector.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if any(b.runs and b.language in RUN for b in blocks(d))]
)
def test_a_document_runs_from_top_to_bottom(document, with_mini, empty_cache):
    run_document(document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_does_not_run_is_right_in_form(document):
    for block in blocks(document):
        if block.language == "python":
            compile(block.code, f"{document}:{block.line}", "exec")
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            if line.startswith("crystal-gym "):
                assert accepts(line), f"{document}:{block.line}: {line}"


def accepts(line):
    """Tell whether ``crystal-gym`` knows a command with these options."""
    (words,) = commands(line.partition(" > ")[0])  # the rest is the shell's
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            build_parser().parse_args(words[1:])
        except SystemExit as end:
            return end.code == 0  # --help
    return True


def test_a_command_with_an_unknown_option_would_be_noticed():
    assert accepts("crystal-gym data build mini")
    assert not accepts("crystal-gym data build mini --colour red")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_to_files_where_no_site_is_built(document):
    path = ROOT / document
    prose = re.sub(
        r"^```.*?^```$|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if ":" not in target and not target.startswith("#"):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_error_sentences_that_the_documents_quote_are_said_by_the_code():
    said = [
        "".join(p.value for p in literal_parts(node) if isinstance(p.value, str))
        for folder in ("crystal_gym", "agents")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    quoted = re.findall(r"^> (.*)$", (ROOT / "docs" / "faq.md").read_text("utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    for sentence in quoted:
        pieces = [piece for piece in sentence.split("…") if piece.strip(" .,();:")]
        assert any(all(piece in text for piece in pieces) for text in said), sentence


def literal_parts(node):
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [part for part in parts if isinstance(part, ast.Constant)]


def test_the_readme_names_its_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make quickstart" in text
    assert "make test" in text
