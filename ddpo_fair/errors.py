"""The one exception that means: the reader can mend this."""


class UserError(ValueError):
    """A mistake in the input, told as name, value, rule and way out.

    Commands print its text as one paragraph and exit with status 2.
    """
