"""A picture of a schedule, drawn from its log: which host is held by whom, how much is held, and how much waits.

SVG, written as text: a panel with a row a host and a box for each stretch in which an entry holds neighbouring hosts,
one with the load over time, one with the nodes that wait. It ends with the last job, where there are jobs: reservations
may go on for weeks, and jobs would be hairlines. Coordinates are in pixels; the same log gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Final

from msgspec import Struct

from broker.replay.log import Event, Header, Line, Seconds
from broker.replay.report import RESOURCE, Report, load
from broker.replay.traces import Kind

WIDTH: Final = 1900.0
"""Of the panels."""

LEFT: Final = 90.0
RIGHT: Final = 30.0
TOP: Final = 84.0
GAP: Final = 46.0
HOSTS_HEIGHT: Final = 640.0
LOAD_HEIGHT: Final = 170.0
WAITING_HEIGHT: Final = 120.0
TALLEST_ROW: Final = 16.0
NARROWEST: Final = 1.0
"""How wide a box is at least, so that what took seconds among weeks is seen."""

JOB_COLOURS: Final = ("#4c78a8", "#72b7b2", "#7aa6d6", "#54a24b", "#9ecae9", "#8cd17d", "#5b6fb5", "#b6d7a8")
RESERVATION_COLOUR: Final = "#d55e00"
WAITING_COLOUR: Final = "#8c6bb1"
STEPS: Final = (1, 5, 15, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)
"""Seconds between two marks of the time axis, where that makes few enough."""

MOST_MARKS: Final = 20
Scale = Callable[[Seconds], float]
"""Where an instant lies from left to right."""


class Stretch(Struct, frozen=True, kw_only=True):
    """An entry holds hosts from one instant to another."""

    id: str
    kind: Kind
    begin: Seconds
    end: Seconds
    hosts: tuple[str, ...]
    suspended: bool  # whether it let go to go on later


def stretches(lines: Iterable[Line]) -> Iterator[Stretch]:
    """Every stretch in which the same hosts are held, in the order in which they end."""
    held: dict[str, tuple[Seconds, tuple[str, ...]]] = {}
    started: set[str] = set()
    for line in lines:
        if line.event is Event.STARTED:
            started.add(line.id)
        if line.nodes is None or line.id not in started:
            continue
        begin, hosts = held.pop(line.id, (line.time, ()))
        if hosts and begin < line.time:
            yield Stretch(
                id=line.id,
                kind=line.kind,
                begin=begin,
                end=line.time,
                hosts=hosts,
                suspended=line.event in (Event.SUSPENDING, Event.SUSPENDED),
            )
        if line.nodes:
            held[line.id] = (line.time, tuple(node.host for node in line.nodes))


def waiting(lines: Iterable[Line]) -> list[tuple[Seconds, int]]:
    """The nodes that wait in the queue, from each instant on at which that changes."""
    asked: dict[str, int] = {}
    waits: set[str] = set()
    now = 0
    found: dict[Seconds, int] = {}
    for line in lines:
        if line.event is Event.SUBMIT:
            asked[line.id] = line.count
        if line.event is Event.QUEUED and line.id not in waits:
            waits.add(line.id)
            now += asked[line.id]
            found[line.time] = now
        elif line.event in (Event.STARTED, Event.ENDED) and line.id in waits:
            waits.discard(line.id)
            now -= asked[line.id]
            found[line.time] = now
    return list(found.items())


def picture(header: Header, lines: Sequence[Line], report: Report) -> str:
    """The SVG of a log."""
    first, last = report.first_submit, _last(lines, report)
    scale = WIDTH / (last - first)

    def across(time: Seconds) -> float:
        return LEFT + (min(max(time, first), last) - first) * scale

    rows = {host.name: row for row, host in enumerate(header.hosts)}
    row_height = min(TALLEST_ROW, HOSTS_HEIGHT / max(1, len(rows)))
    hosts_height = row_height * len(rows)
    load_top = TOP + hosts_height + GAP
    waiting_top = load_top + LOAD_HEIGHT + GAP
    bottom = waiting_top + WAITING_HEIGHT
    marks = _marks(first, last)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT:g}" height="{bottom + 40:g}" '
        f'viewBox="0 0 {LEFT + WIDTH + RIGHT:g} {bottom + 40:g}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_title(header, report, last),
        *_frame(TOP, hosts_height, f"{len(rows)} hosts", [across(mark) for mark in marks]),
        *_host_names(list(rows), row_height),
        *_boxes(lines, rows, row_height, across, last),
        *_load(header, lines, load_top, across, marks, last),
        *_waiting(lines, waiting_top, across, marks, last),
        *(
            f'<text x="{_px(across(mark))}" y="{_px(bottom + 16)}" text-anchor="middle">{_instant(mark)}</text>'
            for mark in marks
        ),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _last(lines: Iterable[Line], report: Report) -> float:
    """Where the picture ends."""
    jobs_end = max((line.time for line in lines if line.event is Event.ENDED and line.kind is Kind.JOB), default=0)
    return max(float(jobs_end or report.last_end), report.first_submit + 1)


def _title(header: Header, report: Report, last: float) -> Iterator[str]:
    jobs, reservations = report.jobs, report.reservations
    policies = "; ".join(f"{pool}: backfill {policy['backfill']}" for pool, policy in header.policies.items())
    what = ", ".join(source.file for source in header.traces)
    preemptible = "jobs are preemptible" if header.preemptible else "no job is preemptible"
    figures = (
        f"{jobs.submitted} jobs, waiting {jobs.wait_seconds.mean:,.0f} s in the mean",
        f"{jobs.wait_seconds.p95:,.0f} s at the 95th percentile",
        f"bounded slowdown {jobs.bounded_slowdown.mean:,.1f} in the mean",
        f"{reservations.accepted} of {reservations.submitted} reservations accepted and {reservations.on_time} on time",
        f"{report.preemptions.suspensions} suspensions",
        f"utilisation {report.utilisation.while_jobs_came:.0%} while jobs came",
    )
    lines = (
        (18, 26, f"{what} ({policies}; order {header.order}; {preemptible})"),
        (13, 48, ", ".join(figures)),
    )
    for size, y, text in lines:
        yield f'<text x="{LEFT:g}" y="{y}" font-size="{size}">{escape(text)}</text>'
    x = LEFT
    for colour, name in (
        (JOB_COLOURS[0], "jobs (a shade each)"),
        (RESERVATION_COLOUR, "reservations"),
        ("black", "let go of to be resumed"),
        (WAITING_COLOUR, "nodes that wait"),
    ):
        yield f'<rect x="{_px(x)}" y="60" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{_px(x + 17)}" y="71">{name}</text>'
        x += 40 + 7 * len(name)
    if last < report.last_end:
        text = f"until the last job ends; reservations go on to {_instant(report.last_end)}"
        yield f'<text x="{LEFT + WIDTH:g}" y="71" text-anchor="end">{text}</text>'


def _frame(top: float, height: float, name: str, marks: Iterable[float]) -> Iterator[str]:
    middle = top + height / 2
    for x in marks:
        yield f'<path d="M{_px(x)} {_px(top)}v{_px(height)}" stroke="#dddddd"/>'
    yield f'<rect x="{LEFT:g}" y="{_px(top)}" width="{WIDTH:g}" height="{_px(height)}" fill="none" stroke="#888888"/>'
    yield (f'<text transform="translate(16 {_px(middle)}) rotate(-90)" text-anchor="middle">{escape(name)}</text>')


def _host_names(names: Sequence[str], row_height: float) -> Iterator[str]:
    """Names of as many hosts as there is room for, the first among them."""
    every = max(1, round(16 / row_height))
    for row in range(0, len(names), every):
        name = names[row].rpartition("/")[2]
        yield (
            f'<text x="{LEFT - 5:g}" y="{_px(TOP + row * row_height + min(row_height, 12) * 0.8)}" font-size="10" '
            f'text-anchor="end">{escape(name[-12:])}</text>'
        )


def _boxes(lines: Sequence[Line], rows: dict[str, int], row_height: float, across: Scale, last: float) -> Iterator[str]:
    colours: dict[str, str] = {}
    for line in lines:
        if line.event is Event.SUBMIT:
            colours[line.id] = (
                RESERVATION_COLOUR if line.kind is Kind.RESERVATION else JOB_COLOURS[len(colours) % len(JOB_COLOURS)]
            )
    for stretch in stretches(lines):
        if stretch.begin >= last:
            continue
        x, width = across(stretch.begin), max(NARROWEST, across(stretch.end) - across(stretch.begin))
        said = (
            f"{stretch.id}: {len(stretch.hosts)} nodes from {_instant(stretch.begin)} to {_instant(stretch.end)}"
            f"{', then suspended' if stretch.suspended else ''}"
        )
        outline = ' stroke="white" stroke-width="0.5"' if width > 4 else ""
        yield f'<g fill="{colours[stretch.id]}"{outline}><title>{escape(said)}</title>'
        for row, count in _runs(rows[host] for host in stretch.hosts):
            y, height = TOP + row * row_height, count * row_height
            yield f'<rect x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}" fill-opacity="0.85"/>'
            if stretch.suspended:
                yield f'<rect x="{_px(x + width - 1)}" y="{_px(y)}" width="1.5" height="{_px(height)}" fill="black"/>'
        yield "</g>"


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring rows, each group as its first and how many."""
    first = count = -1
    for row in sorted(set(rows)):
        if first >= 0 and row == first + count:
            count += 1
            continue
        if first >= 0:
            yield first, count
        first, count = row, 1
    if first >= 0:
        yield first, count


def _load(
    header: Header, lines: Sequence[Line], top: float, across: Scale, marks: Sequence[Seconds], last: float
) -> Iterator[str]:
    there = sum(host.amounts.get(RESOURCE, 0) for host in header.hosts) or 1
    steps = [step for step in load(lines, RESOURCE) if step[0] < last]
    yield from _frame(top, LOAD_HEIGHT, "load", [across(mark) for mark in marks])
    below: defaultdict[Seconds, int] = defaultdict(int)
    for kind, colour in ((Kind.RESERVATION, RESERVATION_COLOUR), (Kind.JOB, JOB_COLOURS[0])):
        upper = [(time, below[time] + by_kind[kind]) for time, by_kind in steps]
        lower = [(time, below[time]) for time, _ in steps]
        below.update(upper)
        yield _area(upper, lower, there, top, LOAD_HEIGHT, across, last, colour)
    yield from _levels(top, LOAD_HEIGHT, [(part / 4, f"{part * 25} %") for part in range(5)])


def _waiting(lines: Sequence[Line], top: float, across: Scale, marks: Sequence[Seconds], last: float) -> Iterator[str]:
    steps = [step for step in waiting(lines) if step[0] < last]
    most = max((nodes for _, nodes in steps), default=0) or 1
    yield from _frame(top, WAITING_HEIGHT, "waiting nodes", [across(mark) for mark in marks])
    if steps:
        zero = [(time, 0) for time, _ in steps]
        yield _area(steps, zero, most, top, WAITING_HEIGHT, across, last, WAITING_COLOUR)
    yield from _levels(top, WAITING_HEIGHT, [(0.0, "0"), (1.0, f"{most:,}")])


def _levels(top: float, height: float, levels: Iterable[tuple[float, str]]) -> Iterator[str]:
    for part, name in levels:
        y = top + height * (1 - part)
        yield f'<path d="M{LEFT:g} {_px(y)}h{WIDTH:g}" stroke="#cccccc" stroke-dasharray="2 4"/>'
        yield f'<text x="{LEFT - 5:g}" y="{_px(y + 4)}" font-size="10" text-anchor="end">{name}</text>'


def _area(
    upper: Sequence[tuple[Seconds, int]],
    lower: Sequence[tuple[Seconds, int]],
    full: int,
    top: float,
    height: float,
    across: Scale,
    last: float,
    colour: str,
) -> str:
    """The area between two steps, each held until the next instant."""

    def line(steps: Sequence[tuple[Seconds, int]]) -> list[str]:
        points = []
        for at, (time, value) in enumerate(steps):
            y = _px(top + height * (1 - value / full))
            until = steps[at + 1][0] if at + 1 < len(steps) else last
            points += [f"{_px(across(time))} {y}", f"{_px(across(until))} {y}"]
        return points

    points = [*line(upper), *reversed(line(lower))]
    return f'<path d="M{"L".join(points)}Z" fill="{colour}" fill-opacity="0.85"/>' if points else ""


def _marks(first: float, last: float) -> list[Seconds]:
    step = next((each for each in STEPS if (last - first) / each <= MOST_MARKS), None)
    if step is None:
        step = STEPS[-1] * -(-int(last - first) // (STEPS[-1] * MOST_MARKS))
    at = -(-int(first) // step) * step
    return list(range(at, int(last) + 1, step))


def _instant(time: Seconds) -> str:
    """An instant in words: 1 d 02:00."""
    days, rest = divmod(int(time), 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if not rest and not hours:
        return f"{days} d" if days else "0"
    clock = f"{hours:02}:{minutes:02}" + (f":{left:02}" if left else "")
    return f"{days} d {clock}" if days else clock


def _px(value: float) -> str:
    """A coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
