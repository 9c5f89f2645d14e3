"""Tables for people, at any width: columns without a value are left out, no column is cut inside a word.

Moments are local time, short, with the offset in the column's head where all of the table share one. On a
terminal too narrow for that, prose wraps at words, then heads and moments; where even that is too wide, each
row becomes a block of lines. Decides nothing about what a table says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from clients.amounts import offset_of, show_instant

Cell = str | Text | datetime | None
GAP = "  "
PROSE_WIDTH = 20  # prose is not made narrower than this while anything else can give way


@dataclass(slots=True)
class _Column:
    head: str
    cells: list[Text]
    prose: bool
    moments: bool

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.head, *(cell.plain for cell in self.cells)))

    def narrowest(self, least: int) -> int:
        """The width that cuts no word, `least` or more; other cells than prose and moments are not wrapped."""
        wraps = self.prose or self.moments
        parts = [part for cell in self.cells for part in (cell.plain.split() if wraps else [cell.plain])]
        return min(self.width, max(least, *map(cell_len, [*self.head.split(), *parts])))


class Table:
    """Rows under column heads; `prose` names the columns that hold sentences."""

    def __init__(self, *heads: str, prose: Collection[str] = ()) -> None:
        self._heads = heads
        self._prose = prose
        self._rows: list[Sequence[Cell]] = []

    def add_row(self, *cells: Cell) -> None:
        """Adds a row."""
        assert len(cells) == len(self._heads), (cells, self._heads)
        self._rows.append(cells)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        columns = self._columns(datetime.now(UTC))
        widths = _fitting(columns, options.max_width)
        lines = _blocks(columns, len(self._rows)) if widths is None else _lines(console, columns, widths)
        for line in lines:
            line.no_wrap, line.overflow = widths is not None, "ignore" if widths is not None else "fold"
            yield line

    def _columns(self, now: datetime) -> list[_Column]:
        moments = [cell for row in self._rows for cell in row if isinstance(cell, datetime)]
        offsets = {offset_of(moment) for moment in moments}
        columns = []
        for index, head in enumerate(self._heads):
            cells = [row[index] for row in self._rows]
            if not any(cells):
                continue
            timed = any(isinstance(cell, datetime) for cell in cells)
            if timed and len(offsets) == 1:
                head += f" ({next(iter(offsets))})"
            shown = [_text(cell, now, offset=len(offsets) > 1) for cell in cells]
            columns.append(_Column(head, shown, prose=self._heads[index] in self._prose, moments=timed))
        return columns


def _text(cell: Cell, now: datetime, *, offset: bool) -> Text:
    if isinstance(cell, datetime):
        return Text(show_instant(cell, now, offset=offset))
    return cell if isinstance(cell, Text) else Text(cell or "")


def _fitting(columns: Sequence[_Column], room: int) -> list[int] | None:
    """Widths that fit into `room`; None where there are none."""
    widths = [column.width for column in columns]
    excess = sum(widths) + len(GAP) * (len(columns) - 1) - room
    for prose, least in ((True, PROSE_WIDTH), (False, 0), (True, 0)):
        while excess > 0:
            slack = [
                (widths[index] - column.narrowest(least), index)
                for index, column in enumerate(columns)
                if column.prose is prose
            ]
            most, index = max(slack, default=(0, 0))
            if most <= 0:
                break
            given = min(most, excess)
            widths[index] -= given
            excess -= given
    return widths if excess <= 0 else None


def _lines(console: Console, columns: Sequence[_Column], widths: Sequence[int]) -> Iterable[Text]:
    heads = [Text(column.head, style="bold") for column in columns]
    for row in [heads, *zip(*(column.cells for column in columns), strict=True)]:
        wrapped = [
            list(cell.wrap(console, width)) if width < cell_len(cell.plain) else [cell.copy()]
            for cell, width in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, wrapped), default=0)):
            line = Text()
            for cell, width in zip(wrapped, widths, strict=True):
                part = cell[number] if number < len(cell) else Text()
                part.rstrip()
                line.append_text(part)
                line.pad_right(max(0, width - cell_len(part.plain)) + len(GAP))
            line.rstrip()
            yield line


def _blocks(columns: Sequence[_Column], rows: int) -> Iterable[Text]:
    width = max(cell_len(column.head) for column in columns)
    for number in range(rows):
        if number:
            yield Text()
        for column in columns:
            if column.cells[number]:
                yield Text(f"{column.head:<{width}}{GAP}", style="bold") + Text() + column.cells[number]
