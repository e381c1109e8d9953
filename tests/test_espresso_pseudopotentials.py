"""Pseudopotential files: found, read, compared, installed; and which pw.x there is."""

import gzip
import hashlib
import io
import os
import re
import tarfile

import pytest
from espresso_helpers import saying, stub, upf, write_upf

from crystal_gym.oracles.espresso import Pseudopotential, Pseudopotentials
from crystal_gym.oracles.espresso import pseudopotentials as module
from crystal_gym.oracles.espresso.oracle import find_pw, pw_version
from crystal_gym.oracles.espresso.pseudopotentials import default_folder, install, manifest

pytest_plugins = ["espresso_fixtures"]

VERSION_1 = """<PP_HEADER>
   0                   Version Number
   {element}                   Element
   US                  Ultrasoft pseudopotential
    {valence}000000000      Z valence
  {cutoffs}   Suggested cutoff for wfc and rho
</PP_HEADER>
<PP_MESH>
</PP_MESH>
<PP_RHOATOM>
</PP_RHOATOM>
"""


def version_1(element, valence=4.0, cutoffs="0.00000    0.00000"):
    return VERSION_1.format(element=element, valence=valence, cutoffs=cutoffs)


def write_archive(path, members):
    """Write a tar.gz of (name, text) pairs; a TarInfo stands for itself."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, text = member
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


# -- a folder of them ------------------------------------------------------------------------------


def test_a_folder_maps_elements_to_their_files(tmp_path):
    folder = write_upf(tmp_path, "Si", "N")
    found = Pseudopotentials(folder)
    assert sorted(found) == ["N", "Si"]
    assert (len(found), "Si" in found, "Ge" in found) == (2, True, False)
    assert found["Si"] == Pseudopotential(
        "Si",
        "Si.made.UPF",
        hashlib.md5(upf("Si").encode(), usedforsecurity=False).hexdigest(),
        4.0,
        30.0,
        240.0,
    )


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("b_pbe_v1.4.uspp.F.UPF", "B"),
        ("Hf-sp.oncvpsp.upf", "Hf"),
        ("He_ONCV_PBE-1.0.oncvpsp.upf", "He"),
        ("Si.pbe-n-rrkjus_psl.1.0.0.UPF", "Si"),
    ],
)
def test_the_element_is_what_the_name_begins_with(tmp_path, name, element):
    (tmp_path / name).write_text(upf(element))
    assert list(Pseudopotentials(tmp_path)) == [element]


@pytest.mark.parametrize("name", ["README.UPF", "Si.txt", ".Si.pbe.UPF", "Qq.UPF", "Si"])
def test_other_files_are_no_pseudopotentials(tmp_path, name):
    write_upf(tmp_path, "N")
    (tmp_path / name).write_text(upf("Si"))
    assert list(Pseudopotentials(tmp_path)) == ["N"]


@pytest.mark.parametrize("make", [True, False], ids=["empty", "missing"])
def test_a_folder_without_any_says_how_to_get_them(tmp_path, make):
    folder = tmp_path / "upf"
    if make:
        folder.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"upf: expected UPF .*`crystal-gym data fetch sssp`"
    ):
        Pseudopotentials(folder)


def test_two_files_for_one_element_are_refused_by_name(tmp_path):
    write_upf(tmp_path, "Si")
    (tmp_path / "si_other.upf").write_text(upf("Si"))
    with pytest.raises(ValueError, match=r"two pseudopotentials for Si, .*Si.made.UPF.*remove the"):
        Pseudopotentials(tmp_path)


def test_an_element_without_a_file_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="Ge"):
        Pseudopotentials(write_upf(tmp_path, "Si"))["Ge"]


def test_a_file_for_another_element_than_its_name_says_is_refused(tmp_path):
    (tmp_path / "Si.UPF").write_text(upf("Si", inside="Ge"))
    with pytest.raises(ValueError, match=r"Si.UPF is a pseudopotential for Ge, not for Si as its"):
        Pseudopotentials(tmp_path)["Si"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(upf("Si").removesuffix("</UPF>\n"), id="no end"),
        pytest.param(upf("Si").replace("</UPF>", "</PP_RHOATOM>"), id="cut in the last sections"),
        pytest.param(version_1("Si").replace("</PP_RHOATOM>", ""), id="version 1, no end"),
        pytest.param(upf("Si").replace("z_valence", "z"), id="no valence"),
        pytest.param(upf("Si", valence="many"), id="valence no number"),
        pytest.param("<html>404</html>", id="a web page"),
    ],
)
def test_an_incomplete_file_is_refused(tmp_path, text):
    (tmp_path / "Si.UPF").write_text(text)
    with pytest.raises(
        ValueError, match=r"Si.UPF is no complete pseudopotential: .*fetch it again"
    ):
        Pseudopotentials(tmp_path)["Si"]


def test_a_file_that_has_gone_is_a_value_error(tmp_path):
    found = Pseudopotentials(write_upf(tmp_path, "Si"))
    (tmp_path / "Si.made.UPF").unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(No such file.*fetch it again"):
        found["Si"]


def test_a_file_that_has_changed_is_read_again(tmp_path):
    found = Pseudopotentials(write_upf(tmp_path, "Si"))
    before = found["Si"]
    (tmp_path / "Si.made.UPF").write_text(upf("Si", valence=12.0))
    assert found["Si"].valence == 12.0
    assert found["Si"].md5 != before.md5


@pytest.mark.parametrize(
    ("cutoffs", "expected"),
    [("0.00000    0.00000", (None, None)), ("36.50000   220.10000", (36.5, 220.1))],
    ids=["none", "some"],
)
def test_a_file_of_version_1_is_read(tmp_path, cutoffs, expected):
    (tmp_path / "Si.UPF").write_text(version_1("Si", 4.0, cutoffs))
    found = Pseudopotentials(tmp_path)["Si"]
    assert found.valence == 4.0
    assert (found.ecutwfc_ry, found.ecutrho_ry) == expected


def test_fortran_s_exponents_are_numbers(tmp_path):
    (tmp_path / "Si.UPF").write_text(upf("Si", valence="0.4D+01"))
    assert Pseudopotentials(tmp_path)["Si"].valence == 4.0


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_GYM_PSEUDO", str(write_upf(tmp_path / "mine", "Si")))
    assert default_folder() == tmp_path / "mine"
    assert Pseudopotentials().folder == tmp_path / "mine"


def test_without_it_the_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("CRYSTAL_GYM_PSEUDO", raising=False)
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "pseudopotentials"


# -- the manifest ----------------------------------------------------------------------------------


def test_the_manifest_knows_82_elements_by_file_and_md5():
    assert len(manifest()) == 82
    assert all(re.fullmatch("[0-9a-f]{32}", entry.md5) for entry in manifest().values())
    assert manifest()["Si"].file == "Si.pbe-n-rrkjus_psl.1.0.0.UPF"


def test_a_file_that_is_not_the_manifest_s_is_named(tmp_path):
    found = Pseudopotentials(write_upf(tmp_path, "Si"))
    assert found.differing() == [
        f"Si: Si.made.UPF (MD5 {found['Si'].md5[:8]}...) is not Si.pbe-n-rrkjus_psl.1.0.0.UPF "
        f"(MD5 {manifest()['Si'].md5[:8]}...)"
    ]


def test_elements_without_a_file_are_named(tmp_path):
    missing = Pseudopotentials(write_upf(tmp_path, "Si")).missing()
    assert len(missing) == 81
    assert "Si" not in missing


# -- installing ------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_of_an_archive_are_taken_by_name_alone(tmp_path):
    archive = write_archive(
        tmp_path / "a.tar.gz",
        [("sssp/Si.UPF", upf("Si")), ("./sssp/deep/n_x.upf", upf("N")), ("README", "text")],
    )
    found = install(archive, tmp_path / "upf")
    assert sorted(found) == ["N", "Si"]
    assert contents(tmp_path / "upf") == {"Si.UPF": upf("Si"), "n_x.upf": upf("N")}


def test_files_of_a_folder_are_taken(tmp_path):
    write_upf(tmp_path / "source", "Si", "N")
    (tmp_path / "source" / "README").write_text("text")
    install(tmp_path / "source", tmp_path / "upf")
    assert contents(tmp_path / "upf") == {"Si.made.UPF": upf("Si"), "N.made.UPF": upf("N")}


def test_a_folder_may_be_installed_into_itself(tmp_path):
    write_upf(tmp_path, "Si")
    install(tmp_path, tmp_path)
    assert contents(tmp_path) == {"Si.made.UPF": upf("Si")}


@pytest.mark.parametrize("name", ["../../Si.UPF", "/etc/Si.UPF", "upf/../../../tmp/Si.UPF"])
def test_names_that_lead_elsewhere_lead_nowhere(tmp_path, name):
    archive = write_archive(tmp_path / "a.tar.gz", [(name, upf("Si"))])
    install(archive, tmp_path / "deep" / "upf")
    assert contents(tmp_path / "deep" / "upf") == {"Si.UPF": upf("Si")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "deep"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_what_is_no_regular_file_is_not_taken(tmp_path, kind):
    link = tarfile.TarInfo("N.UPF")
    link.type, link.linkname = kind, "/etc/passwd"
    archive = write_archive(tmp_path / "a.tar.gz", [link, ("Si.UPF", upf("Si"))])
    install(archive, tmp_path / "upf")
    assert contents(tmp_path / "upf") == {"Si.UPF": upf("Si")}


def test_a_new_file_replaces_the_element_s_old_one(tmp_path):
    folder = write_upf(tmp_path / "upf", "Si", "N")
    archive = write_archive(tmp_path / "a.tar.gz", [("si_new.upf", upf("Si", 12.0))])
    assert install(archive, folder)["Si"].valence == 12.0
    assert contents(folder) == {"si_new.upf": upf("Si", 12.0), "N.made.UPF": upf("N")}


def bad_archive(path, how):
    good = [("N.UPF", upf("N")), ("Si.UPF", upf("Si"))]
    if how == "no archive":
        path.write_text("not an archive")
    elif how == "empty file":
        path.write_bytes(b"")
    elif how == "cut off":
        write_archive(path, [("N.UPF", upf("N")), ("Si.UPF", hashlib.sha256().hexdigest() * 9999)])
        path.write_bytes(path.read_bytes()[:200])
    elif how == "wrong checksum":
        write_archive(path, good)
        content = bytearray(path.read_bytes())
        content[-8] ^= 0xFF
        path.write_bytes(content)
    elif how == "garbled":
        plain = gzip.decompress(write_archive(path, good).read_bytes())
        path.write_bytes(plain[:100] + b"\xff" * 412 + plain[512:])
    return path


@pytest.mark.parametrize(
    "how", ["no archive", "empty file", "cut off", "wrong checksum", "garbled"]
)
def test_a_damaged_archive_changes_nothing(tmp_path, how):
    folder = write_upf(tmp_path / "upf", "Si")
    with pytest.raises(ValueError, match=r"a.tar.gz is not a readable tar archive"):
        install(bad_archive(tmp_path / "a.tar.gz", how), folder)
    assert contents(folder) == {"Si.made.UPF": upf("Si")}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param(
            [("N.UPF", upf("N")), ("Si.UPF", upf("Si")), ("si_b.upf", upf("Si"))],
            r"a.tar.gz holds two pseudopotentials for Si, Si.UPF and si_b.upf",
            id="two for one element",
        ),
        pytest.param(
            [("a/Si.UPF", upf("Si")), ("b/Si.UPF", upf("Si", 12.0))],
            "a.tar.gz holds two files called Si.UPF",
            id="two of one name",
        ),
        pytest.param(
            [("N.UPF", upf("N")), ("Si.UPF", upf("Si", inside="Ge"))],
            r"a.tar.gz/Si.UPF is a pseudopotential for Ge, not for Si",
            id="another element",
        ),
        pytest.param(
            [("N.UPF", upf("N")), ("Si.UPF", upf("Si")[:-9])],
            r"a.tar.gz/Si.UPF is no complete pseudopotential",
            id="incomplete",
        ),
    ],
)
def test_an_archive_with_a_wrong_file_changes_nothing(tmp_path, members, message):
    folder = write_upf(tmp_path / "upf", "Si")
    with pytest.raises(ValueError, match=message):
        install(write_archive(tmp_path / "a.tar.gz", members), folder)
    assert contents(folder) == {"Si.made.UPF": upf("Si")}


def test_an_archive_of_something_else_is_refused(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz", [("README", "text")])
    with pytest.raises(FileNotFoundError, match="a.tar.gz holds no UPF file of an element"):
        install(archive, tmp_path / "upf")
    assert not (tmp_path / "upf").exists()


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nothing does not exist: expected a folder or a tar"
    ):
        install(tmp_path / "nothing", tmp_path / "upf")


def test_a_file_too_large_for_a_pseudopotential_is_not_unpacked(tmp_path):
    huge = tarfile.TarInfo("Si.UPF")
    huge.size = 51_000_000
    (tmp_path / "a.tar").write_bytes(huge.tobuf() + b"\0" * 10_240)
    with pytest.raises(ValueError, match="Si.UPF of 51,000,000 bytes as file 1: expected at most"):
        install(tmp_path / "a.tar", tmp_path / "upf")


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_an_archive_that_expands_to_too_much_is_not_unpacked(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(module, "_MAX_BYTES", 5_000_000)
    with tarfile.open(tmp_path / "a.tar", f"w:{ending}") as archive:
        for number in range(6):
            member = tarfile.TarInfo(f"README{number}")
            member.size = 1_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert (tmp_path / "a.tar").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"a\.tar holds more than 5,000,000 bytes"):
        install(tmp_path / "a.tar", tmp_path / "upf")
    assert not (tmp_path / "upf").exists()


def test_an_archive_of_very_many_files_is_not_unpacked(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz", [(f"README{i}", "x") for i in range(501)])
    with pytest.raises(ValueError, match="as file 501: expected at most 500 files"):
        install(archive, tmp_path / "upf")


def test_a_pipe_among_pseudopotentials_is_refused(tmp_path):
    os.mkfifo(tmp_path / "Si.UPF")
    with pytest.raises(ValueError, match=r"Si\.UPF is no regular file"):
        Pseudopotentials(tmp_path)["Si"]


@pytest.mark.data
def test_the_archive_holds_the_manifest_s_files_and_no_others(pseudopotentials):
    assert pseudopotentials.differing() == []
    assert pseudopotentials.missing() == []
    assert sorted(pseudopotentials) == sorted(manifest())


@pytest.mark.data
@pytest.mark.parametrize("element", ["Si", "Li", "He", "Ce", "Hf"])
def test_the_archive_s_files_read_as_the_manifest_says(pseudopotentials, element):
    assert pseudopotentials[element] == manifest()[element]


# -- which pw.x ------------------------------------------------------------------------------------


def test_no_pw_x_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"'pw.x' of Quantum ESPRESSO was not found.*apt-get"
    ):
        find_pw()


def test_a_pw_x_on_the_path_is_found(tmp_path, monkeypatch):
    program = saying(tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_pw() == str(program)


def test_a_file_that_is_no_program_is_not_found(tmp_path):
    (tmp_path / "pw.x").write_text("text")
    with pytest.raises(FileNotFoundError, match="was not found"):
        find_pw(str(tmp_path / "pw.x"))


def test_the_version_is_that_of_the_banner(tmp_path):
    program = saying(tmp_path, "\n     Program PWSCF v.7.4.1 starts on 24Nov2026", status=1)
    assert pw_version(str(program)) == "7.4.1"


def test_a_replaced_program_is_asked_again(tmp_path):
    program = saying(tmp_path, "Program PWSCF v.7.0 starts")
    assert pw_version(str(program)) == "7.0"
    program = saying(tmp_path, "Program PWSCF v.7.3 starts")
    assert pw_version(str(program)) == "7.3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "\n     Program PHONON v.6.7 starts", "Program PHONON v.6.7", id="other banner"
        ),
        pytest.param("", "'nothing'", id="nothing"),
        pytest.param("x" * 9999, f"{'x' * 200}'", id="very much"),
        pytest.param(
            "error while loading shared libraries: a.so", "loading shared", id="libraries"
        ),
    ],
)
def test_a_program_without_pw_x_s_banner_is_refused(tmp_path, text, said):
    program = saying(tmp_path, text)
    with pytest.raises(ValueError, match=rf"is no working pw.x: expected a line .*{said}.*apt-get"):
        pw_version(str(program))


def test_a_program_that_cannot_be_started_is_refused(tmp_path):
    program = stub(tmp_path, "")
    program.write_text("#!/no/such/interpreter\n")
    with pytest.raises(ValueError, match=r"cannot be started \(.*apt-get"):
        pw_version(str(program))


@pytest.mark.dft
def test_the_real_pw_x_tells_its_version(pw):
    assert re.fullmatch(r"\d+\.\d+\S*", pw_version(pw))
