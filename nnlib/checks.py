"""Settings that can't be used are refused by name, with what would do."""

from collections.abc import Iterable
from numbers import Integral, Real


def require(holds: bool, name: str, given, wanted: str) -> None:
    """Raise ValueError, naming the setting, where it doesn't hold."""
    if not holds:
        raise ValueError(f"{name}={given!r:.60} can't be used: give {wanted}")


def require_count(name: str, given, least: int = 1) -> int:
    """`given` itself; raises ValueError, naming it, where that is no whole number or too small."""
    require(isinstance(given, Integral) and given >= least, name, given, f"a whole number, {least} or more")
    return int(given)


def require_number(name: str, given, within: str, wanted: str = "") -> float:
    """`given` itself; raises ValueError, naming it, for what is no number in an interval such as "(0, 1]"."""
    low, high = (float(end) for end in within[1:-1].split(","))
    holds = isinstance(given, Real) and (low < given or within[0] == "[" and low == given)
    holds = holds and (given < high or within[-1] == "]" and given == high)
    require(holds, name, given, wanted or f"a number in {within}")
    return given


def require_known(name: str, given, known: Iterable[str]) -> None:
    """Raise ValueError, naming what is known, where `given` isn't among it."""
    if given not in known:
        raise ValueError(f"{name}={given!r} is not known: give one of {', '.join(known)}")
