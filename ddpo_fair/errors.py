"""The one exception that means: the reader can mend this."""

LONGEST_ECHO = 60  # characters of a value that a message repeats


class UserError(ValueError):
    """A mistake in the input, told as name, value, rule and way out.

    Commands print its text as one paragraph and exit with status 2.
    """


class HostLost(UserError):
    """Another process or a device is gone: the same command continues the run."""


def shown(value: object) -> str:
    """A value as messages repeat it: quoted, on one line, not too long."""
    text = repr(value)
    if len(text) > LONGEST_ECHO:
        return f"{text[:LONGEST_ECHO]}... ({len(text)} characters)"
    return text
