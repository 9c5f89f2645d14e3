"""The figures of a replay, computed from its log alone.

- Waiting time of a job: from when it is asked for until it first holds its hosts.
- Bounded slowdown of a job: max(1, (wait + run) / max(run, 10 s)), with what it stood still while suspended counted as
  waiting (Feitelson, Rudolph, Schwiegelshohn, Sevcik and Wong, "Theory and Practice in Parallel Job Scheduling", JSSPP
  1997). The bound keeps jobs of a few seconds from ruling the mean.
- Utilisation: what was held of all hosts' CPU, by time, over what there is of it; from the first request to the last
  end, and while jobs came (to the last job's request), when it says how well a policy packs.
- Percentiles are of the nearest rank.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Final

from msgspec import Struct

from broker.replay.log import Event, Header, Line, Seconds, Source
from broker.replay.traces import Kind

SLOWDOWN_BOUND: Final = 10.0
"""Seconds that a run counts as at least."""

RESOURCE: Final = "cpu"
"""The resource whose use is utilisation."""


class Spread(Struct, frozen=True, kw_only=True):
    """How values are spread."""

    mean: float
    p50: float
    p95: float
    max: float


class Jobs(Struct, frozen=True, kw_only=True):
    """What became of the jobs. `cut`: those that would have run longer than they asked for."""

    submitted: int
    refused: int
    queued: int
    started: int
    ended: int
    failed: int
    cut: int
    never_started: int
    wait_seconds: Spread
    bounded_slowdown: Spread


class Reservations(Struct, frozen=True, kw_only=True):
    """What became of the reservations."""

    submitted: int
    accepted: int
    acceptance_rate: float
    refused: dict[str, int]  # by reason
    on_time: int  # ran within the second that was promised
    late: int


class Preemptions(Struct, frozen=True, kw_only=True):
    """What gave way."""

    suspensions: int
    jobs: int  # that were suspended once at least
    suspended_seconds: float


class Utilisation(Struct, frozen=True, kw_only=True):
    """Held CPU by time, over all there is."""

    overall: float
    while_jobs_came: float


class Report(Struct, frozen=True, kw_only=True):
    """A replay in figures. Times are seconds from the start of the traces."""

    traces: tuple[Source, ...]
    preemptible: bool
    order: str
    policies: dict[str, dict[str, str | bool]]
    hosts: int
    jobs: Jobs
    reservations: Reservations
    preemptions: Preemptions
    utilisation: Utilisation
    first_submit: float
    last_end: float


class Story(Struct, kw_only=True):
    """One entry, as its lines tell it."""

    submit: Line
    started: Seconds | None = None
    first_run: Seconds | None = None
    promised: Seconds | None = None
    ended: Line | None = None
    ran: float = 0.0
    suspensions: int = 0
    suspended: float = 0.0
    events: set[Event]

    @property
    def kind(self) -> Kind:
        """What kind of entry it is."""
        return self.submit.kind

    @property
    def wait(self) -> float:
        """Seconds until it started."""
        return float(self.started - self.submit.time) if self.started is not None else 0.0

    @property
    def bounded_slowdown(self) -> float:
        """How many times longer it took than it ran."""
        return max(1.0, (self.wait + self.suspended + self.ran) / max(self.ran, SLOWDOWN_BOUND))


def stories(lines: Iterable[Line]) -> dict[str, Story]:
    """Every entry's story, by id, in the order of the log."""
    found: dict[str, Story] = {}
    running: dict[str, Seconds] = {}
    still: dict[str, Seconds] = {}
    for line in lines:
        if line.event is Event.SUBMIT:
            found[line.id] = Story(submit=line, events=set())
        story = found[line.id]
        story.events.add(line.event)
        match line.event:
            case Event.ACCEPTED:
                story.promised = line.start
            case Event.STARTED:
                story.started = line.time if story.started is None else story.started
            case Event.RUNNING:
                running[line.id] = line.time
                story.first_run = line.time if story.first_run is None else story.first_run
                story.suspended += line.time - still.pop(line.id, line.time)
            case Event.SUSPENDING:
                story.suspensions += 1
                still[line.id] = line.time
            case Event.REFUSED | Event.ENDED:
                story.ended = line
        if line.event in (Event.SUSPENDING, Event.ENDING, Event.ENDED):
            story.ran += line.time - running.pop(line.id, line.time)
    return found


def load(lines: Iterable[Line], resource: str) -> list[tuple[Seconds, dict[Kind, int]]]:
    """What is held of a resource from each instant on at which that changes, by kind."""
    changes: defaultdict[Seconds, Counter[Kind]] = defaultdict(Counter)
    holds: dict[str, int] = {}
    started: set[str] = set()
    for line in lines:
        if line.event is Event.STARTED:
            started.add(line.id)
        if line.nodes is None or line.id not in started:
            continue
        held = sum(node.amounts.get(resource, 0) for node in line.nodes)
        changes[line.time][line.kind] += held - holds.get(line.id, 0)
        holds[line.id] = held
    now = dict.fromkeys(Kind, 0)
    found = []
    for time in sorted(changes):
        now = {kind: now[kind] + changes[time][kind] for kind in Kind}
        found.append((time, now))
    return found


def report(header: Header, lines: Sequence[Line]) -> Report:
    """The figures of a log."""
    all_stories = stories(lines).values()
    jobs = [story for story in all_stories if story.kind is Kind.JOB]
    reservations = [story for story in all_stories if story.kind is Kind.RESERVATION]
    begun = [story for story in jobs if story.started is not None]
    accepted = [story for story in reservations if story.promised is not None]
    on_time = [story for story in accepted if _on_time(story)]
    refused = Counter(story.ended.how for story in reservations if _refused(story) and story.ended is not None)
    first = float(min((story.submit.time for story in all_stories), default=0))
    last = float(max((line.time for line in lines if line.event is Event.ENDED), default=first))
    return Report(
        traces=header.traces,
        preemptible=header.preemptible,
        order=header.order,
        policies=header.policies,
        hosts=len(header.hosts),
        jobs=Jobs(
            submitted=len(jobs),
            refused=sum(map(_refused, jobs)),
            queued=sum(Event.QUEUED in story.events for story in jobs),
            started=len(begun),
            ended=sum(Event.ENDED in story.events for story in jobs),
            failed=sum(story.ended is not None and story.ended.how == "failed" for story in jobs),
            cut=sum((story.submit.real or 0) > (story.submit.requested or 0) for story in begun),
            never_started=sum(story.started is None and not _refused(story) for story in jobs),
            wait_seconds=_spread([story.wait for story in begun]),
            bounded_slowdown=_spread([story.bounded_slowdown for story in begun]),
        ),
        reservations=Reservations(
            submitted=len(reservations),
            accepted=len(accepted),
            acceptance_rate=_rounded(len(accepted) / len(reservations)) if reservations else 0.0,
            refused=dict(sorted(refused.items())),
            on_time=len(on_time),
            late=len(accepted) - len(on_time),
        ),
        preemptions=Preemptions(
            suspensions=sum(story.suspensions for story in all_stories),
            jobs=sum(story.suspensions > 0 for story in all_stories),
            suspended_seconds=_rounded(sum(story.suspended for story in all_stories)),
        ),
        utilisation=Utilisation(
            overall=_utilisation(header, lines, first, last),
            while_jobs_came=_utilisation(
                header, lines, first, float(max((story.submit.time for story in jobs), default=last))
            ),
        ),
        first_submit=first,
        last_end=last,
    )


def _refused(story: Story) -> bool:
    return Event.REFUSED in story.events


def _on_time(story: Story) -> bool:
    if story.promised is None or story.first_run is None:
        return False
    return story.promised <= story.first_run < story.promised + 1


def _utilisation(header: Header, lines: Sequence[Line], first: float, last: float) -> float:
    there = sum(host.amounts.get(RESOURCE, 0) for host in header.hosts)
    if last <= first or not there:
        return 0.0
    steps = load(lines, RESOURCE)
    held = 0.0
    for at, (time, by_kind) in enumerate(steps):
        until = steps[at + 1][0] if at + 1 < len(steps) else last
        held += sum(by_kind.values()) * max(0.0, min(until, last) - max(time, first))
    return _rounded(held / (there * (last - first)))


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(mean=0.0, p50=0.0, p95=0.0, max=0.0)
    ranked = sorted(values)
    return Spread(
        mean=_rounded(sum(ranked) / len(ranked)),
        p50=_rounded(ranked[ceil(0.50 * len(ranked)) - 1]),
        p95=_rounded(ranked[ceil(0.95 * len(ranked)) - 1]),
        max=_rounded(ranked[-1]),
    )


def _rounded(value: float) -> float:
    return round(value, 6)
