"""Numbers as a reader wants them: axis ticks, percentages, bytes, counts."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DASH = "\N{EN DASH}"


def number(value: object, digits: int = 4) -> str:
    """Up to `digits` significant digits, thousands separated, powers of ten where zeros would pile up.

    A dash for what is not a number, such as a statistic that is missing.
    """
    if not isinstance(value, int | float):
        return DASH
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa.replace('-', MINUS)}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", MINUS)


def percent(share: object, decimals: int = 1) -> str:
    """0.123 -> 12.3 %; a dash for what is not a number."""
    if not isinstance(share, int | float):
        return DASH
    return f"{100 * share:.{decimals}f}\N{NARROW NO-BREAK SPACE}%"


def size(count: int) -> str:
    """Bytes in decimal units."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def count(amount: float) -> str:
    """Counts as people say them: 950, 12.3k, 2.55M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if amount >= limit:
            scaled = amount / (1e3 if unit == "k" else limit)
            return f"{scaled:.3g}{unit}"
    return f"{amount:,.0f}"


def duration(seconds: float) -> str:
    """1 h 2 min, 3 min 4 s, 5.6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers from `low` to `high`."""
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Powers of ten from `low` to `high` (positive), thinned, or with 2 and 5 where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    if decades < 0.7:
        return [tick for tick in linear_ticks(low, high, wanted + 3) if tick > 0]
    digits = (1,) if decades >= 3 else (1, 3) if decades >= 1.6 else (1, 2, 5)
    stride = max(1, math.ceil(decades / wanted))
    return [
        digit * 10.0**exponent
        for exponent in range(first, last + 1)
        if len(digits) > 1 or exponent % stride == 0
        for digit in digits
        if low * 0.999 <= digit * 10.0**exponent <= high * 1.001
    ]


def tick_labels(ticks: list[float], as_percent: bool, log: bool) -> list[str]:
    """The labels of an axis, all with the same decimals on a linear one."""
    if as_percent:
        places = max((_decimals(100 * tick) for tick in ticks), default=0)
        return [percent(tick, places) for tick in ticks]
    biggest = max((abs(tick) for tick in ticks), default=0)
    if log and (biggest >= 1e5 or any(0 < tick < 1e-3 for tick in ticks)):
        return [_power(tick) for tick in ticks]
    if log or len(ticks) < 2:
        return [number(tick) for tick in ticks]
    if biggest >= 1e4:
        return [count(tick) if tick >= 1000 else number(tick) for tick in ticks]
    if biggest < 1e-3:
        return [number(tick, 3) for tick in ticks]
    decimals = max(_decimals(tick) for tick in ticks)
    return [f"{tick:,.{decimals}f}".replace("-", MINUS) for tick in ticks]


def _power(tick: float) -> str:
    exponent = math.floor(math.log10(tick) + 1e-9)
    digit = round(tick / 10.0**exponent)
    power = f"10{str(exponent).translate(SUPERSCRIPTS)}"
    return power if digit == 1 else f"{digit}·{power}"


def _decimals(tick: float) -> int:
    return len(f"{tick:.6f}".rstrip("0").split(".")[1])
