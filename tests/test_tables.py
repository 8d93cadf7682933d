import os

import pytest

from ppo_toy.tables import read_table, table_text, write_whole


def written(folder, *lines):
    path = folder / "table.tsv"
    write_whole(path, "\n".join(lines))
    return path


def test_what_is_written_is_read(tmp_path):
    rows = [["a b", 1], ["β", 2]]
    path = tmp_path / "table.tsv"
    write_whole(path, table_text(["word", "n"], rows))
    assert path.read_bytes() == "word\tn\na b\t1\nβ\t2\n".encode()
    assert read_table(path, ["word", "n"], lambda word, n: [word, int(n)]) == rows
    assert read_table(path, ("word", "n"), lambda word, n: n, n_rows=2) == ["1", "2"]


@pytest.mark.parametrize(
    ("lines", "n_rows", "said"),
    [
        ([], None, "line 1: the columns are not ['n']"),
        (["m", "1"], None, "line 1: the columns are not ['n']"),
        (["n", "1", "1\t2"], None, "line 3: 2 columns where 1 were due"),
        (["n", "1", "one"], None, "line 3: invalid literal for int() with base 10: 'one'"),
        (["n"], None, "has 0 rows; some were due"),
        (["n", "1"], 2, "has 1 rows; 2 were due"),
        (["n", "1", "2", "3"], 2, "has 3 rows; 2 were due"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_its_command(tmp_path, lines, n_rows, said):
    path = written(tmp_path, *lines)
    for command, hint in (("", ""), ("make it", "; to make it again: make it")):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read_table(path, ["n"], int, n_rows=n_rows, command=command)
        assert str(error.value) in (f"{path}, {said}{hint}", f"{path} {said}{hint}")


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="table.tsv is missing; to make it again: make it"):
        read_table(tmp_path / "table.tsv", ["n"], int, command="make it")
    (tmp_path / "table.tsv").write_bytes(b"n\n\xff\n")
    with pytest.raises(ValueError, match="table.tsv is not UTF-8 text: .* to make it again"):
        read_table(tmp_path / "table.tsv", ["n"], int, command="make it")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = written(tmp_path, "n", "1")

    def fails(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="full"):
        write_whole(path, "n\n2\n")
    assert path.read_text(encoding="utf-8") == "n\n1"
    monkeypatch.undo()
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
