"""Human amounts in, exact amounts out: cpu, memory, durations and instants as people write them.

Invariant: `parse_x(format_x(n)) == n` for every n the API can carry. A parser raises ValueError with a
sentence that says what would do. Memory and disk are rounded up to whole MiB, so nobody gets less than asked
for; cpu and durations are exact or refused. What is only to be read is `show_amount` (exact) or `show_about`
(three digits, rounded down, so that it never promises what is not there), and `show_instant`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_MIB = 1024 * 1024
_SIZES = {
    "B": 1,
    "KiB": 1024,
    "MiB": _MIB,
    "GiB": 1024**3,
    "TiB": 1024**4,
    "PiB": 1024**5,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "PB": 1000**5,
}
_SIZE_BY_NAME = {name.lower(): size for name, size in _SIZES.items()}
_PRINTED = ((1024**3, "PiB"), (1024**2, "TiB"), (1024, "GiB"), (1, "MiB"))  # in MiB
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_INT64 = 2**63 - 1
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # in any locale


def parse_cpu(text: str) -> int:
    """Milli-cores: `2` and `0.5` are cores, `500m` is milli-cores."""
    match = re.fullmatch(rf"({_NUMBER})(m?)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no number of cores; write 2, 0.5 or 500m")
    milli = Fraction(match[1]) * (1 if match[2] else 1000)
    if milli.denominator != 1:
        raise ValueError(f"{text!r} is finer than a milli-core; the finest is 1m or 0.001")
    return _bounded(milli.numerator, text)


def format_cpu(milli: int) -> str:
    """Cores, without needless digits."""
    return _decimal(Fraction(milli, 1000))


def parse_mib(text: str) -> int:
    """MiB: `4GiB`, `512MiB`, `10GB` (decimal); a plain number is MiB. Rounded up to a whole MiB."""
    match = re.fullmatch(rf"({_NUMBER})\s*([A-Za-z]*)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no size; write 4GiB, 512MiB, 10GB, or a number of MiB")
    unit = match[2].lower() or "mib"
    if unit not in _SIZE_BY_NAME:
        raise ValueError(f"{match[2]!r} is no unit of size; write MiB, GiB, TiB, or MB, GB, TB")
    octets = Fraction(match[1]) * _SIZE_BY_NAME[unit]
    return _bounded(-(-octets // _MIB), text)


def format_mib(mib: int) -> str:
    """The largest unit that says it exactly in at most two decimals."""
    for size, unit in _PRINTED:
        if mib >= size and (mib * 100) % size == 0:
            return _decimal(Fraction(mib, size)) + unit
    return f"{mib}MiB"


def parse_count(text: str) -> int:
    """A whole number, of whatever a pool counts."""
    if not re.fullmatch(r"\d+", text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return _bounded(int(text), text)


_PARSERS: dict[str, Callable[[str], int]] = {"cpu": parse_cpu, "memory": parse_mib, "disk": parse_mib}
_FORMATS: dict[str, Callable[[int], str]] = {"cpu": format_cpu, "memory": format_mib, "disk": format_mib}


def parse_amount(resource: str, text: str) -> int:
    """An amount of a resource by the resource's key."""
    return _PARSERS.get(resource, parse_count)(text)


def format_amount(resource: str, amount: int) -> str:
    """An amount of a resource by the resource's key."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    return sign + _FORMATS.get(resource, str)(amount)


def show_amount(resource: str, amount: int) -> str:
    """An amount with its unit, exact: `2 cores`, `4 GiB`, and a bare number of what a pool counts itself."""
    return _with_unit(resource, format_amount(resource, amount))


def show_about(resource: str, amount: int) -> str:
    """An amount with its unit, to three digits and rounded down: `4.57 TiB`."""
    if _FORMATS.get(resource) is not format_mib or amount < 1024:
        return show_amount(resource, amount)
    size, unit = next((size, unit) for size, unit in _PRINTED if amount >= size)
    return f"{_three_digits(Fraction(amount, size))} {unit}"


def show_share(resource: str, part: int, whole: int) -> str:
    """A part of a whole, as `show_about`; the unit once where it suits both: `12/16 GiB`, `1 MiB/4.57 TiB`."""
    parts, wholes = show_about(resource, part).split(" "), show_about(resource, whole).split(" ")
    if resource == "cpu" or len(wholes) == 1:  # one unit only
        return f"{parts[0]}/{wholes[0]}"
    size = next(size for size, unit in _PRINTED if unit == wholes[1])
    if part and part * 100 < size:  # would read as nothing
        return f"{' '.join(parts)}/{' '.join(wholes)}"
    return f"{_three_digits(Fraction(part, size))}/{' '.join(wholes)}"


def _with_unit(resource: str, number: str) -> str:
    if resource == "cpu":
        return f"{number} core{'s' * (number != '1')}"
    return re.sub(r"(?<=\d)(?=[A-Z])", " ", number) if resource in _FORMATS else number


def _three_digits(number: Fraction) -> str:
    """Three digits, or all before the point; rounded down."""
    scale = 1 if number >= 100 else 10 if number >= 10 else 100
    return _decimal(Fraction(int(number * scale), scale))


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `2h`, `.5h`, `1d12h`, `2w`; exact to the microsecond."""
    parts = re.findall(rf"({_NUMBER})\s*([wdhms])", compact := text.strip().lower())
    spelled = re.fullmatch(rf"(?:(?:{_NUMBER})\s*[wdhms]\s*)+", compact)
    units = [unit for _, unit in parts]
    if not spelled or len(set(units)) != len(units):
        raise ValueError(f"{text!r} is no duration; write 90s, 15m, 2h, .5h, 1d or 1d12h")
    micros = sum(Fraction(number) * _SECONDS[unit] for number, unit in parts) * 1_000_000
    if micros != int(micros):
        raise ValueError(f"{text!r} is finer than a microsecond")
    try:
        return timedelta(microseconds=int(micros))
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None


def format_duration(span: timedelta) -> str:
    """Days, hours, minutes and seconds, those that are not 0."""
    if span < timedelta(0):
        return "-" + format_duration(-span)
    seconds = Fraction(span // timedelta(microseconds=1), 1_000_000)
    text = ""
    for unit in ("d", "h", "m"):
        many, seconds = divmod(seconds, _SECONDS[unit])
        text += f"{many}{unit}" if many else ""
    return text + (f"{_decimal(seconds)}s" if seconds or not text else "")


def parse_instant(text: str, now: datetime | None = None) -> datetime:
    """`now`, `+2h`, or ISO 8601; without an offset it is local time. Aware, in UTC."""
    now = now or datetime.now(UTC)
    text = text.strip()
    if text == "now":
        return now
    if text.startswith("+"):
        try:
            return now + parse_duration(text[1:])
        except OverflowError:
            raise ValueError(f"{text!r} is too far ahead") from None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no time; write 2026-05-01T14:00 (local), +2h or now") from None


def format_instant(moment: datetime) -> str:
    """Local time with its offset, to the second."""
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def show_instant(moment: datetime, now: datetime, *, offset: bool = True) -> str:
    """Local time to the second, as short as cannot be mistaken `now`: today's without a date."""
    local, today = moment.astimezone(), now.astimezone()
    if local.date() == today.date():
        text = local.strftime("%H:%M:%S")
    elif local.year == today.year:
        text = f"{_MONTHS[local.month - 1]} {local.strftime('%d %H:%M:%S')}"
    else:
        text = local.strftime("%Y-%m-%d %H:%M:%S")
    return text + (offset_of(moment) if offset else "")


def offset_of(moment: datetime) -> str:
    """The offset of local time at a moment: `+02:00`."""
    return moment.astimezone().isoformat()[-6:]


def rounded_up(span: timedelta) -> timedelta:
    """Whole seconds, and from two minutes on whole minutes: a time to come back after, never too early."""
    unit = timedelta(seconds=1) if span <= timedelta(minutes=2) else timedelta(minutes=1)
    return -(-span // unit) * unit


def _bounded(number: int, text: str) -> int:
    if number > _INT64:
        raise ValueError(f"{text!r} is too large")
    return number


def _decimal(number: Fraction) -> str:
    """A fraction whose denominator divides a power of ten, in plain digits."""
    whole, rest = divmod(number, 1)
    digits = ""
    while rest:
        digit, rest = divmod(rest * 10, 1)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else str(whole)
