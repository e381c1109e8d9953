"""`crystal_gym.cdvae`: CDVAE's CSV files."""

import gzip

import pytest
from made_crystals import STRUCTURES, cif_text

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.structures import cell_from_structure, parse_cif

CIFS = [cif_text(STRUCTURES[name]) for name in ("rocksalt", "wurtzite", "fluorite")]


def write_csv(path, cifs, header="cif", prefix=lambda i: ""):
    text = header + "\n" + "".join(f'{prefix(i)}"{cif}"\n' for i, cif in enumerate(cifs))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_rows_come_with_their_position_and_text(tmp_path, name):
    rows, problems = read_cdvae_csv(write_csv(tmp_path / name, CIFS))
    assert [row.position for row in rows] == [0, 1, 2]
    assert [row.cif for row in rows] == CIFS
    assert problems == {}


def test_a_row_without_an_id_is_named_by_file_and_position(tmp_path):
    rows, _ = read_cdvae_csv(write_csv(tmp_path / "train.csv.gz", CIFS))
    assert [row.name for row in rows] == ["train-0", "train-1", "train-2"]


def test_a_row_with_an_id_has_it_as_its_name(tmp_path):
    path = write_csv(tmp_path / "x.csv", CIFS, "material_id,cif", lambda i: f"mp-{i + 7},")
    rows, _ = read_cdvae_csv(path)
    assert [row.name for row in rows] == ["mp-7", "mp-8", "mp-9"]


def test_the_first_unnamed_column_is_not_the_position(tmp_path):
    path = write_csv(tmp_path / "x.csv", CIFS, ",cif", lambda i: f"{37228 - i},")
    rows, _ = read_cdvae_csv(path)
    assert [row.position for row in rows] == [0, 1, 2]


def test_a_row_without_a_cif_is_reported_by_its_position(tmp_path):
    rows, problems = read_cdvae_csv(write_csv(tmp_path / "x.csv", [CIFS[0], "", "?", CIFS[1]]))
    assert [row.position for row in rows] == [0, 3]
    assert list(problems) == [1, 2]
    assert "no atom sites" in problems[1]


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text(f'cif\n"{CIFS[0]}"\n', encoding="utf-8-sig")
    rows, _ = read_cdvae_csv(path)
    assert len(rows) == 1


def test_a_file_without_the_column_names_what_it_found(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv has no column called cif \(found: a, b\)"):
        read_cdvae_csv(tmp_path / "x.csv")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(ValueError, match=r"no column called cif \(found: none\)"):
        read_cdvae_csv(tmp_path / "x.csv")


def damaged(kind):
    whole = bytearray(gzip.compress(("cif\n" + "".join(f'"{c}"\n' for c in CIFS)).encode()))
    if kind == "truncated":
        return whole[: len(whole) // 2]
    if kind == "checksum":
        whole[-8:-4] = b"\0\0\0\0"
    if kind == "stream":
        whole[10] = 0xFF  # a block type that does not exist
    if kind == "not gzip":
        return b"cif\n"
    return whole


@pytest.mark.parametrize("kind", ["truncated", "checksum", "stream", "not gzip"])
def test_a_damaged_gzip_is_refused_by_name(tmp_path, kind):
    (tmp_path / "x.csv.gz").write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=r"x\.csv\.gz is damaged .*fetch it again"):
        read_cdvae_csv(tmp_path / "x.csv.gz")


def test_a_csv_that_ends_inside_a_quoted_field_is_refused(tmp_path):
    path = write_csv(tmp_path / "x.csv", CIFS)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"x\.csv is damaged"):
        read_cdvae_csv(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"cif\n\xff\xfe\x00\n")
    with pytest.raises(ValueError, match=r"x\.csv is damaged"):
        read_cdvae_csv(tmp_path / "x.csv")


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_cdvae_csv(tmp_path / "none.csv")


@pytest.mark.data
def test_the_published_format_is_read(data_dir):
    rows, problems = read_cdvae_csv(data_dir / "mp20" / "cdvae_format_sample.csv")
    assert problems == {}
    assert rows[0].name == "mp-1221227"
    assert rows[0].position == 0
    cell = cell_from_structure(parse_cif(rows[0].cif))
    assert len(cell.reference) == 12  # Na3MnCoNiO6


@pytest.mark.data
def test_the_splits_have_their_published_sizes(train_rows, val_rows):
    assert (len(train_rows), len(val_rows)) == (27_136, 9_047)
