"""The one exception that means: the user can fix this."""

import resource
from collections.abc import Container, Mapping

LONGEST_ECHO = 60  # characters of a value that a message repeats
LONGEST = 8000  # characters of a message
LONGEST_LINE = 300  # characters of another library's message


class UserError(ValueError):
    """A mistake in the input, by name, value, rule and way out: exit status 2."""


class HostLost(UserError):
    """Another process or a device is gone: the same command continues the run."""


def check_address_space(least: int, why: str) -> None:
    """Raises a UserError, which ends with `why`, where fewer bytes can be addressed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if resource.RLIM_INFINITY != allowed < least:
        raise UserError(f"This process may address {allowed / 1e9:.1f} GB, {why}")


def paragraph(error: Exception | str) -> str:
    """A text as commands print it: one line, nothing a terminal would obey."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def first_line(error: Exception) -> str:
    """The first line of an error's text, which may fill pages, or the error's kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST_LINE].rstrip(".")


def differences(
    before: Mapping[str, object], now: Mapping[str, object], free: Container[str] = ()
) -> list[str]:
    """`NAME was X and is now Y` for each setting, but the free, that has changed.

    Of a group, a mapping before and now, each that has, as GROUP.NAME.
    """
    found = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(
                *({f"{name}.{x}": one[x] for x in one} for one in (old, new)), free
            )
        elif old != new and name not in free:
            found.append(f"{name} was {shown(old)} and is now {shown(new)}")
    return found


def shown(value: object) -> str:
    """A value as messages repeat it: quoted, on one line, not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too long to show"
    if len(text) > LONGEST_ECHO:
        return f"{text[:LONGEST_ECHO]}... ({len(text)} characters)"
    return text
