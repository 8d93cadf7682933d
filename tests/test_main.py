import subprocess
import sys

import pytest

from ppo_toy.__main__ import main

QUICK = ["--steps", "60", "--batch-size", "128", "--seeds", "3"]


def test_the_story_is_told_as_a_table_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "story.png"
    assert main([*QUICK, "--betas", "0.5", "1", "--picture", str(picture)]) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["beta", "R", "KL", "J", "gap"]
    assert [row.split()[-5:-3] for row in rows[::3]] == [["0.5", "reference"], ["1", "reference"]]
    # 0.25 * 0.5 + 0.2 * 0.5 + 0.15 * 1 + 0.07 * 1.5 + 0.03 * 2.5 = 0.555
    assert rows[0].split()[-3:] == ["0.555", "0.000", "0.555"]
    assert last == f"picture: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_gap_is_the_share_of_the_possible_gain_that_was_left(tmp_path, capsys):
    main([*QUICK, "--betas", "1", "--picture", str(tmp_path / "p.png")])
    reference, trained, best = (
        [float(x.rstrip("%")) for x in row.split() if x.rstrip("%").replace(".", "").isdigit()]
        for row in capsys.readouterr().out.splitlines()[1:4]
    )
    gap = (best[-1] - trained[-2]) / (best[-1] - reference[-1])
    # J is printed to 3 decimals of a possible gain of 0.2, the gap to 0.01 %
    assert abs(100 * gap - trained[-1]) < 1
    assert trained[-1] < 10


def test_brackets_are_a_world_too(tmp_path, capsys):
    assert main([*QUICK, "--world", "brackets", "--picture", str(tmp_path / "p.png")]) == 0
    assert "exact best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--betas", "0"], "beta is 0.0"),
        (["--betas", "-1"], "beta is -1.0"),
        (["--steps", "0"], "steps is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--picture", "no/such/folder/p.png"], "no folder no/such/folder"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    picture = [] if "--picture" in arguments else ["--picture", str(tmp_path / "p.png")]
    assert main([*arguments, *picture]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ppo_toy: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_word_where_a_number_is_due_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--betas", "small"])
    assert stopped.value.code == 2
    assert "invalid float value: 'small'" in capsys.readouterr().err


def test_help_explains_the_table():
    command = [sys.executable, "-m", "ppo_toy", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nats per response" in answer.stdout
    assert "examples:" in answer.stdout
