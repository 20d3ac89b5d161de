"""The error for input that the user can correct."""


class InputError(ValueError):
    """A sweep file, an option or a storage that cannot be used.

    The message names the thing, the value, the place and the way out. The command line prints it
    without a traceback and exits with code 2.
    """
