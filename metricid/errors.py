"""The one exception for a user's mistake."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a row, an option.

    The message is one line that says what is wrong, where, and what to do. The command line prints it without
    a traceback and ends with exit code 2.
    """
