"""Many conversions: planned as a whole, then done one after the other or some at once, whatever fails.

Only this process writes the journal, and only what it has journalled counts as done the next time.
"""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.errors import ChildDied
from .batch_board import Batch, BatchOutput, State
from .batch_convert import convert_step
from .batch_downloads import Downloads
from .batch_jobs import Step
from .batch_journal import Journal, Record
from .batch_judge import PlannedOutput
from .batch_plan import StepPlan, plan_step
from .batch_space import lacking_space
from .executor import Executor, Outcome, Task

_ENVIRONMENT = 4
_UNPROVEN: dict[str, tuple[State, str, int]] = {
    "failed": ("failed", "ProofError", 1),
    "not decided": ("not done", "EnvironmentProblem", _ENVIRONMENT),
}


class Explained(Protocol):
    """What an exception means for people."""

    @property
    def type(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def hint(self) -> str | None: ...
    @property
    def exit_code(self) -> int: ...


class Watch(Protocol):
    """Told of what happens, as it happens."""

    def planning(self, done: int, total: int) -> None:
        """So many steps are planned."""

    def planned(self, batch: Batch) -> None:
        """The whole plan stands; raising here ends the batch before anything is made."""

    def begun(self, step: Step) -> None:
        """A conversion starts."""

    def retrying(self, step: Step, error: BaseException) -> None:
        """The process of a step died; it gets another."""

    def ended(self, outputs: Sequence[BatchOutput], error: BaseException | None) -> None:
        """A conversion has ended, or was refused."""


@dataclass(frozen=True)
class Settings:
    """How to run a batch.

    ``disk``: bytes its outputs and downloads may take together. ``force``: files of others may be replaced.
    ``again``: nothing counts as done. ``explain`` puts exceptions in words.
    """

    explain: Callable[[BaseException], Explained]
    force: bool = False
    again: bool = False
    disk: int | None = None


class Runner:
    """A batch at work.

    ``records`` are the journal's last words by key (``batch_journal.latest``), ``downloads`` know what
    earlier runs have fetched.
    """

    def __init__(
        self,
        batch: Batch,
        executor: Executor,
        records: Mapping[str, Record],
        downloads: Downloads,
        settings: Settings,
        watch: Watch,
    ) -> None:
        self.batch, self._executor, self._records = batch, executor, records
        self._downloads, self._settings, self._watch = downloads, settings, watch
        self._journal: Journal | None = None
        self._running: dict[int, str] = {}  # number of a step -> when it was begun, as the journal has it
        self._attempts: Counter[int] = Counter()

    def plan(self) -> None:
        """Plan every step; nothing is written. What cannot be converted has failed by then."""
        steps = self.batch.steps
        for number, step in enumerate(steps):
            self._submit_plan(number, step)
        done = 0
        for outcome in self._executor.results():
            number = int(outcome.task.key)
            if self._died(number, outcome):
                self._submit_plan(number, steps[number])
                continue
            self._take_plan(number, outcome)
            done += 1
            self._watch.planning(done, len(steps))
        self._attempts.clear()
        self._watch.planned(self.batch)

    def _submit_plan(self, number: int, step: Step) -> None:
        known = {key: self._records[key] for key in step.keys if key in self._records}
        arguments = (step, known, self._settings.force, self._settings.again)
        self._executor.submit(Task(str(number), plan_step, arguments))

    def _take_plan(self, number: int, outcome: Outcome) -> None:
        step = self.batch.steps[number]
        if outcome.error is not None:
            self._fail(step, outcome.error)
            return
        plan: StepPlan = outcome.value
        self.batch.plans[number] = plan
        self._downloads.note(step.source, plan.commit, plan.download)
        for planned in plan.outputs:
            output = self.batch.outputs[planned.key]
            output.path, output.bytes, output.why = str(planned.path), planned.bytes, planned.why
            if planned.state == "done":
                self._set_done(output, planned)
            elif planned.error is not None:
                self._fail(step, planned.error, [output])

    def _set_done(self, output: BatchOutput, planned: PlannedOutput) -> None:
        record = planned.record or self._records[planned.key]
        output.state, output.bytes, output.path = "done before", record["bytes"], record["path"]
        output.verdict, output.kl_mean = record["verdict"], record.get("kl_mean")

    def run(self, journal: Journal) -> None:
        """Make what the plan says, and write down each end; goes on whatever fails."""
        self._journal = journal
        self._write_plan_down(journal)
        with self._output_folders():
            waiting = deque(self.batch.order)
            self._end_sources(waiting)
            self._fill(waiting)
            for outcome in self._executor.results():
                number = int(outcome.task.key)
                begun = self._running.pop(number)
                if self._died(number, outcome):
                    waiting.append(number)  # at the end, where less may run beside it
                else:
                    self._end(self.batch.plans[number], outcome, begun)
                self._fill(waiting)
                self._end_sources(waiting)

    def _write_plan_down(self, journal: Journal) -> None:
        for plan in self.batch.plans.values():
            for planned in plan.outputs:
                if planned.record is not None:
                    content = {k: v for k, v in planned.record.items() if k not in ("event", "time")}
                    journal.append("found", **content)
        for output in self.batch.outputs.values():
            if output.error is not None:
                self._write_failure(output)

    @contextlib.contextmanager
    def _output_folders(self) -> Iterator[None]:
        """Make them, since conversions that share one take back what they made if they fail."""
        steps = [self.batch.steps[number] for number in self.batch.order]
        folders = dict.fromkeys(_folder(step) for step in steps)
        made = [each for path in folders for each in (path, *path.parents) if not each.exists()]
        for path in folders:
            with contextlib.suppress(OSError):  # the conversion says what is wrong
                path.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            for path in dict.fromkeys(made):
                with contextlib.suppress(OSError):  # not empty: all went well
                    path.rmdir()

    def _fill(self, waiting: deque[int]) -> None:
        """Give the executor what there is room for, on the disk, too."""
        held: list[int] = []
        while waiting and len(self._running) < self._executor.slots:
            number = waiting.popleft()
            plan = self.batch.plans[number]
            beside = [self.batch.plans[number] for number in self._running]
            fetch = self._downloads.to_fetch(plan.step.source)
            there = self.batch.bytes_there + self._downloads.held
            lacking = lacking_space(plan, fetch, beside, there, self._settings.disk)
            if lacking is None:
                self._begin(number, plan, len(waiting) + len(held))
            elif self._running:  # what runs may leave more than it takes
                held.append(number)
            else:
                self._fail(plan.step, lacking, [self.batch.outputs[each.key] for each in plan.to_make])
        waiting.extendleft(reversed(held))

    def _end_sources(self, waiting: Collection[int]) -> None:
        """Delete what was fetched of sources that nothing needs any more; what is not done will need it."""
        assert self._journal is not None
        needed = {self.batch.steps[number].source for number in (*waiting, *self._running)}
        needed |= {each.source for each in self.batch.outputs.values() if each.state == "not done"}
        for source in self._downloads.sources - needed:
            self._downloads.end(source, self._journal)

    def _begin(self, number: int, plan: StepPlan, waiting: int) -> None:
        assert self._journal is not None
        outputs = [self.batch.outputs[planned.key] for planned in plan.to_make]
        step = plan.step.with_types([planned.type for planned in plan.to_make])
        self._downloads.begin(step.source, self._journal)
        record = self._journal.append("began", job=step.job, keys=list(step.keys))
        self._running[number] = record["time"]
        for output in outputs:
            output.state = "running"
        self._watch.begun(step)
        overwrite = any(planned.overwrite for planned in plan.to_make)
        commit = self._downloads.commit_of(step.source)
        beside = min(self._executor.slots, len(self._running) + waiting)  # this one included
        left = any("began" in self._records.get(key, {}) for key in step.keys)
        resume = left or self._attempts[number] > 0
        arguments = (step, commit, overwrite, max(1, beside), resume)
        self._executor.submit(Task(str(number), convert_step, arguments))

    def _end(self, plan: StepPlan, outcome: Outcome, begun: str) -> None:
        assert self._journal is not None
        outputs = [self.batch.outputs[planned.key] for planned in plan.to_make]
        if outcome.error is not None:
            self._fail(plan.step, outcome.error, outputs, begun)
            return
        for record in outcome.value:
            self._journal.append("made", **record)
            output = self.batch.outputs[record["key"]]
            output.state, output.path, output.bytes = "made", record["path"], record["bytes"]
            output.verdict, output.kl_mean = record["verdict"], record["kl_mean"]
            output.seconds, output.error = record["seconds"], None
            if output.verdict in _UNPROVEN:
                output.state, output.error = _unproven(output, str(record["cause"]))
        self._watch.ended(outputs, None)

    def _died(self, number: int, outcome: Outcome) -> bool:
        """Whether a step's process died for the first time: it gets a second."""
        if not isinstance(outcome.error, ChildDied):
            return False
        self._attempts[number] += 1
        if self._attempts[number] > 1:
            return False
        self._watch.retrying(self.batch.steps[number], outcome.error)
        return True

    def _fail(
        self,
        step: Step,
        error: BaseException,
        outputs: Sequence[BatchOutput] | None = None,
        begun: str | None = None,
    ) -> None:
        words = self._settings.explain(error)
        outputs = self.batch.of(step) if outputs is None else outputs
        for output in outputs:
            output.state = "not done" if words.exit_code == _ENVIRONMENT else "failed"
            output.error = {
                "type": words.type,
                "message": words.message,
                "hint": words.hint,
                "exit_code": words.exit_code,
            }
            if self._journal is not None:
                self._write_failure(output, begun)
        self._watch.ended(outputs, error)

    def _write_failure(self, output: BatchOutput, begun: str | None = None) -> None:
        assert self._journal is not None
        since = {} if begun is None else {"began": begun}
        event = "failed" if output.state == "failed" else "not done"
        self._journal.append(event, key=output.key, job=output.job, error=output.error, **since)


def _unproven(output: BatchOutput, cause: str) -> tuple[State, dict[str, object]]:
    """State and error of an output whose proof was not good enough."""
    state, type, code = _UNPROVEN[output.verdict or ""]
    what = "failed" if state == "failed" else "could not be finished"
    hint = shlex.join(["kconv", "verify", output.path, "--against", output.source])
    message = f"the proof {what}: {cause}"
    return state, {"type": type, "message": message, "hint": f"details: {hint}", "exit_code": code}


def _folder(step: Step) -> Path:
    return step.output.parent if step.output.suffix == ".gguf" else step.output
