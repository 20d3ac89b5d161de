"""The one error that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the thing, the value, the place and the way out; the command line prints
    it without a traceback and exits with code 2.
    """
