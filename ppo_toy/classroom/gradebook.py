"""The grade book: a folder in which a grade, once written, is neither lost nor half-written.

    results/STUDENT/LESSON.json   the truth: one file for each graded notebook
    reports/STUDENT.md            what failed and why, for people
    junit/STUDENT/EXERCISE.xml    what pytest reported
    grades.csv                    one row a student, one column an exercise
    class.md                      for the instructor: who solved what, the faults, what was left out

Each file is written whole or not at all. Reports and table are made of the
results, so folders of results that were graded elsewhere can be copied together.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ppo_toy.tables import write_whole


@dataclass(frozen=True)
class Mark:
    """What one exercise earned.

    Attributes:
        exercise: its name.
        points: earned.
        out_of: that can be earned.
        verdict: what was wrong; "right", "not attempted" or "no answer".
        look_at: names in the answer that a person should look at.
    """

    exercise: str
    points: int
    out_of: int
    verdict: str
    look_at: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """One graded notebook.

    Attributes:
        student: whose; fit for a file's name.
        lesson: name of the reference; "unknown" if the file did not tell.
        file: what was handed in.
        digest: of the file and the reference, so that a changed one is graded again.
        seed: of the hidden cases.
        walled: whether the kernels ran inside bubblewrap.
        marks: one for each exercise.
        remarks: what was odd about the file.
    """

    student: str
    lesson: str
    file: str
    digest: str
    seed: int
    walled: bool
    marks: list[Mark]
    remarks: list[str]

    @property
    def points(self) -> int:
        """The sum over the exercises."""
        return sum(mark.points for mark in self.marks)

    @property
    def out_of(self) -> int:
        """What a perfect notebook earns."""
        return sum(mark.out_of for mark in self.marks)


class Gradebook:
    """The records in a folder, which is made if it is not there.

    Args:
        folder: see the module.

    Attributes:
        records: by student and lesson.
        left_out: what was handed in and not graded, by path, and why; for the instructor's page.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what is there; see the class."""
        self.folder = folder
        self.records: dict[tuple[str, str], Record] = {}
        for path in sorted(folder.glob("results/*/*.json")):
            record = _read(path)
            self.records[record.student, record.lesson] = record
        self.left_out: dict[str, str] = {}

    def holds(self, student: str, lesson: str, digest: str) -> bool:
        """Whether this very file was graded already."""
        record = self.records.get((student, lesson))
        return record is not None and record.digest == digest

    def refuse_another_edition(self, points: Mapping[str, Mapping[str, int]]) -> None:
        """Refuses a book in which a lesson has other exercises than now: they would be mixed.

        Args:
            points: of each exercise of each lesson.

        Raises:
            ValueError: one mark at least was for another exercise, or out of other points.
        """
        for (student, lesson), record in self.records.items():
            then = {mark.exercise: mark.out_of for mark in record.marks}
            if then and then != points.get(lesson, then):
                had = ", ".join(f"{name} ({most})" for name, most in then.items())
                raise ValueError(
                    f"the grade book {self.folder} is of another edition: {student}'s {lesson} has "
                    f"marks for {had}; the exercises are others now, so name a new folder"
                )

    def add(self, record: Record, reports: dict[str, bytes]) -> None:
        """Writes a record and the JUnit reports of its exercises, then the table."""
        for exercise, xml in reports.items():
            _write(self.folder / "junit" / record.student / f"{exercise}.xml", xml)
        text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
        _write(self.folder / "results" / record.student / f"{record.lesson}.json", text)
        self.records[record.student, record.lesson] = record
        self.publish(record.student)

    def publish(self, *students: str) -> None:
        """Writes the table, and the reports of these students or of all."""
        for student in students or {student for student, _ in self.records}:
            mine = [record for (name, _), record in sorted(self.records.items()) if name == student]
            _write(self.folder / "reports" / f"{student}.md", report(mine))
        _write(self.folder / "grades.csv", table(self.records.values()))
        page = class_page(self.records.values(), self.left_out)
        _write(self.folder / "class.md", page)


def table(records: Iterable[Record]) -> str:
    """The grades as comma-separated values: a row for each student, and what a person should see.

    A blank means that the lesson was not handed in; it counts as 0.
    """
    rows: dict[str, dict[str, int]] = {}
    most: dict[str, int] = {}
    look: dict[str, int] = {}
    for record in sorted(records, key=lambda record: record.lesson):
        row = rows.setdefault(record.student, {})
        look[record.student] = look.get(record.student, 0) + len(record.remarks)
        for mark in record.marks:
            row[mark.exercise] = mark.points
            most[mark.exercise] = mark.out_of
            look[record.student] += bool(mark.look_at)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", *most, "total", "out_of", "to_look_at"])
    for student, row in sorted(rows.items()):
        points = [row.get(exercise, "") for exercise in most]
        writer.writerow([student, *points, sum(row.values()), sum(most.values()), look[student]])
    return text.getvalue()


def report(records: list[Record]) -> str:
    """One student's report, in Markdown."""
    lines = [f"# {records[0].student}"]
    for record in records:
        lines += ["", f"## {record.lesson}: {record.points} of {record.out_of} points", ""]
        lines += [f"Handed in as {_quoted(record.file)}.", ""]
        for mark in record.marks:
            lines.append(
                f"- **{mark.exercise}** {mark.points} of {mark.out_of}: {_quoted(mark.verdict)}"
            )
            if mark.look_at:
                names = ", ".join(map(_quoted, mark.look_at))
                lines.append(f"  - for a person to look at: the answer names {names}")
        lines += [f"- remark: {_quoted(remark)}" for remark in record.remarks]
        if not record.walled:
            lines += ["", NOT_WALLED]
    return "\n".join(lines) + "\n"


def class_page(records: Iterable[Record], left_out: Mapping[str, str]) -> str:
    """The instructor's page, in Markdown: who solved what, which faults, and what was left out."""
    marks: dict[str, list[Mark]] = {}
    for record in sorted(records, key=lambda record: record.lesson):
        for mark in record.marks:
            marks.setdefault(mark.exercise, []).append(mark)
    lines = ["# The class", "", "| exercise | handed in | attempted | solved |", "|---" * 4 + "|"]
    faults = []
    for name, of_class in marks.items():
        verdicts = Counter(_kind(mark.verdict) for mark in of_class)
        idle = verdicts["no answer"] + verdicts["not attempted"]
        n = len(of_class)
        lines.append(f"| {name} | {n} | {n - idle} | {sum(x.points > 0 for x in of_class)} |")
        del verdicts["right"]
        faults += ["", f"**{name}**", ""] if verdicts else []
        faults += [f"- {n} x {_quoted(fault)}" for fault, n in verdicts.most_common()]
    lines += ["", "## Faults, by the number of students", *faults, "", "## Not graded", ""]
    lines += [f"- {_quoted(path)}: {why}" for path, why in left_out.items()] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _kind(verdict: str) -> str:
    """A verdict without the numbers and the texts that differ from student to student."""
    verdict = re.sub(r"[-+]?\b(\d[\w.+-]*|inf|nan)\b", "…", verdict)
    return re.sub(r"[\[(]*…([\[(\])\s,]*…)*[\])]*", "…", verdict)


NOT_WALLED = (
    "Note: bubblewrap was not used, so the answers ran with limits but without walls. They could "
    "read files of the user who graded, and use the network."
)


def _quoted(text: str) -> str:
    """A stranger's text, which no reader of Markdown takes for anything else."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return "`" + text.replace("`", "'").replace("<", "‹").replace(">", "›") + "`"


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _read(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        marks = [Mark(**mark) for mark in content.pop("marks")]
        return Record(marks=marks, **content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no result of this grader; remove it ({error})") from None
