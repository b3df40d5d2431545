"""What there is to say of every output of a batch, at any moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .batch_jobs import Step
from .batch_journal import DONE, Record, made_of
from .batch_plan import StepPlan

State = Literal["planned", "running", "done before", "made", "failed", "not done"]


@dataclass
class BatchOutput:
    """One output of the batch and how far it is.

    ``failed`` is a finding (refused, or its proof failed), ``not done`` the machine's fault (disk, memory, a
    process that was killed). ``error`` has type, message, hint and exit_code. ``why`` says what was wrong
    with an earlier one.
    """

    key: str
    job: int
    source: str
    format: str
    type: str
    path: str
    state: State = "planned"
    bytes: int = 0
    why: str = ""
    verdict: str | None = None
    kl_mean: float | None = None
    seconds: float | None = None
    error: Mapping[str, object] | None = None

    @property
    def finished(self) -> bool:
        """Whether it is there and good."""
        return self.state in ("made", "done before")


@dataclass
class Batch:
    """The steps, their plans by number of step, and the state of every output by key."""

    steps: Sequence[Step]
    plans: dict[int, StepPlan] = field(default_factory=dict)
    outputs: dict[str, BatchOutput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for step in self.steps:
            for key, name in step.keys.items():
                self.outputs[key] = BatchOutput(
                    key, step.job, step.source, step.format, name, str(step.output)
                )

    def of(self, step: Step) -> list[BatchOutput]:
        """The outputs of a step."""
        return [self.outputs[key] for key in step.keys]

    @property
    def order(self) -> list[int]:
        """Numbers of the steps that have something to make, small sources first, each source together."""
        sizes: Counter[str] = Counter()
        for plan in self.plans.values():
            sizes[plan.step.source] += plan.source_bytes + plan.bytes
        left = [number for number, plan in self.plans.items() if plan.to_make]
        return sorted(left, key=lambda number: (sizes[self.steps[number].source], number))

    @property
    def bytes_there(self) -> int:
        """What the finished outputs take."""
        return sum(output.bytes for output in self.outputs.values() if output.finished)

    @property
    def bytes_to_make(self) -> int:
        """About what is going to be written."""
        return sum(plan.bytes for plan in self.plans.values())


def status_of(steps: Sequence[Step], records: Mapping[str, Record]) -> Batch:
    """The batch as its journals tell it, without a look at any source or output."""
    batch = Batch(steps)
    for key, output in batch.outputs.items():
        record = records.get(key)
        if record is None:
            continue
        event, made = record["event"], made_of(record)
        if made is not None:
            output.path, output.bytes, output.verdict = made["path"], made["bytes"], made["verdict"]
            output.kl_mean, output.seconds = made.get("kl_mean"), made.get("seconds")
        if event in DONE:
            states: dict[str, State] = {"failed": "failed", "not decided": "not done"}
            output.state = states.get(record["verdict"], "made")
        elif event in ("failed", "not done"):
            output.state, output.error = ("failed" if event == "failed" else "not done"), record["error"]
        elif event == "began":
            output.state = "running"
    return batch
