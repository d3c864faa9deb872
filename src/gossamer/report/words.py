"""Figures as words, for tables, plots and pages alike."""

MISSING = "\N{EN DASH}"


def seconds(value: float | None) -> str:
    """Word a duration given in seconds, for example ``12.3 s`` or ``840 ms``."""
    if value is None:
        return MISSING
    return f"{_short(value)} s" if value >= 1 else milliseconds(value * 1e3)


def milliseconds(value: float | None) -> str:
    """Word a duration given in milliseconds."""
    return MISSING if value is None else f"{_short(value)} ms"


def speedup(value: float | None) -> str:
    """Word a speed-up; below 1 is slower, and keeps its decimals."""
    return MISSING if value is None else f"{_short(value)}x"


def size(value: float | None) -> str:
    """Word a number of bytes in binary units, for example ``360 MiB``."""
    if value is None:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{_short(value)} {unit}"
        value /= 1024
    return f"{_short(value)} GiB"


def share(value: float | None) -> str:
    """Word a share of 1 in per cent; only the whole is called 100 %, only nothing 0 %."""
    if value is None:
        return MISSING
    if 0 < value < 1e-4:
        return "<0.01 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    percent = f"{value * 100:.{2 if value < 0.01 else 1}f}"
    return f"{percent.rstrip('0').rstrip('.')} %"


def change(value: float | None) -> str:
    """Word a relative change, for example ``+0.8 %``."""
    if value is None:
        return MISSING
    words = f"{value * 100:+.{1 if abs(value) < 10 else 0}f} %"
    return "0 %" if words in ("+0.0 %", "-0.0 %") else words


def perplexity(value: float | None) -> str:
    """Word a perplexity; beyond a thousand only its size matters."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def divergence(value: float | None) -> str:
    """Word a Kullback-Leibler divergence in nats."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def figure(value: float | str | None) -> str:
    """Word a figure of a claim."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:.4g}"


def superscript(number: int) -> str:
    """Write a footnote number in superior digits."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def decimals(value: float | None, places: int) -> str:
    """Word a number with so many places behind the point."""
    return MISSING if value is None else f"{value:.{places}f}"


def _short(value: float) -> str:
    """Keep three figures, two decimals at most."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
