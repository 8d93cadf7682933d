"""One lesson's hidden cases, and the examination of one submission on them."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from ppo_toy.classroom.cage import Limits
from ppo_toy.classroom.cells import read_cells
from ppo_toy.classroom.check import Case, transcript
from ppo_toy.classroom.exercise import Exercise
from ppo_toy.classroom.gradebook import Mark, Record
from ppo_toy.classroom.open_ended import OpenExercise
from ppo_toy.classroom.sitting import Sitting, plain, sit
from ppo_toy.classroom.splice import (
    Reference,
    Submission,
    for_a_person,
    is_untouched,
    spliced,
    take,
)
from ppo_toy.classroom.submissions import HandedIn, digest


class Examiner:
    """Draws the hidden cases of a lesson, knows what its checks have to print, and runs answers.

    Args:
        reference: the lesson's solutions.
        seed: of the hidden cases.
        limits: what an answer may use.
        walled: whether bubblewrap is used.
    """

    def __init__(self, reference: Reference, seed: int, limits: Limits, *, walled: bool) -> None:
        """Draws the cases; see the class."""
        self.reference, self.seed, self.limits, self.walled = reference, seed, limits, walled
        self.cases: dict[str, list[Case]] = {}
        self.expected: dict[str, str] = {}  # of the open ones nothing: they are judged afterwards
        for name, question in reference.questions.items():
            self.cases[name] = question.exercise.cases(seed)
            if question.exercise.route:
                lines = transcript(question.exercise.route, self.cases[name])
                self.expected[name] = "\n".join(lines) + "\n"

    def sit(self, name: str, answer: str, helpers: Sequence[str] = ()) -> Sitting:
        """Runs one answer after its helpers; once more if the run leaves no report.

        An open answer that ran to its end is judged here, by the numbers that it printed.
        """
        notebook = spliced(self.reference, name, answer, self.expected.get(name), helpers)
        for _ in range(2):
            sitting = sit(notebook, name, self.cases[name], self.limits, walled=self.walled)
            if sitting.xml:
                break
        if name not in self.expected and sitting.passed:
            exercise = self.reference.questions[name].exercise
            fault = _told(exercise, sitting.printed, self.cases[name])
            return replace(sitting, passed=not fault, ended=fault)
        return sitting

    def verify(self, pool: Executor) -> None:
        """Runs the reference's own answers on the hidden cases, in the same cage.

        Raises:
            ValueError: one of them does not get its points, so nobody could.
        """
        names = list(self.reference.questions)
        own = take(self.reference.notebook.cells, self.reference)  # an answer may use another
        each = [own.answers[name] for name in names], [own.helpers[name] for name in names]
        for name, sitting in zip(names, pool.map(self.sit, names, *each), strict=True):
            if not sitting.passed:
                why = sitting.ended or f"it printed {plain(sitting.printed)!r}"
                raise ValueError(f"the reference's own answer to {name} does not pass: {why}")

    def start(self, handed_in: HandedIn, pool: Executor) -> "Examination":
        """Reads a file and hands its answers to the pool."""
        try:
            taken = take(read_cells(handed_in.path), self.reference)
        except (ValueError, OSError) as error:
            taken = Submission(remarks=[f"nothing could be read: {error}"])
        running = {
            name: pool.submit(self.sit, name, answer, taken.helpers.get(name, ()))
            for name, answer in taken.answers.items()
            if not is_untouched(answer, self.reference, name)
        }
        return Examination(self, handed_in, taken, running)


@dataclass
class Examination:
    """A submission whose answers are being run."""

    examiner: Examiner
    handed_in: HandedIn
    taken: Submission
    running: dict[str, Future]

    def finish(self) -> tuple[Record, dict[str, bytes]]:
        """Waits for the answers; returns the record, and the JUnit report of each answer."""
        sittings = {name: future.result() for name, future in self.running.items()}
        reference, path = self.examiner.reference, self.handed_in.path
        remarks = [*self.handed_in.remarks, *self.taken.remarks]
        record = Record(
            student=self.handed_in.student,
            lesson=self.handed_in.lesson,
            file=plain(str(path)),
            digest=digest(path, reference),
            seed=self.examiner.seed,
            walled=self.examiner.walled,
            marks=[self._mark(name, sittings.get(name)) for name in reference.questions],
            remarks=[plain(remark) for remark in remarks],
        )
        return record, {name: sitting.xml for name, sitting in sittings.items()}

    def _mark(self, name: str, sitting: Sitting | None) -> Mark:
        reference, answer = self.examiner.reference, self.taken.answers.get(name)
        out_of = reference.questions[name].points
        if sitting is None:
            return Mark(name, 0, out_of, "no answer" if answer is None else "not attempted")
        points = out_of if sitting.passed else 0
        run = "\n".join([*self.taken.helpers.get(name, ()), answer])
        look_at = for_a_person(run, reference, name)
        return Mark(name, points, out_of, self._verdict(name, sitting), look_at)

    def _verdict(self, name: str, sitting: Sitting) -> str:
        if sitting.passed:
            return "right"
        if sitting.ended.startswith("NotImplementedError"):
            return "it is not finished, or uses an answer that is not"
        if sitting.ended:
            return sitting.ended.removeprefix("CheckFailed: ")
        exercise = self.examiner.reference.questions[name].exercise
        told = _told(exercise, sitting.printed, self.examiner.cases[name])
        return told or "something else was reported as well"


def _told(exercise: Exercise | OpenExercise, printed: str, cases: list[Case]) -> str:
    """What is wrong, and where; not the hidden numbers. Empty if nothing is."""
    try:
        fault = exercise.diagnosis(printed.splitlines(), cases)
    except Exception:  # what a stranger printed must not stop the class
        return "it printed what no check prints"
    return plain("\n".join((fault or "").splitlines()[:2]))
