"""Errors that decide what happens next: whether a trial is retried, and what the user is told."""

#: The exit code of commands for an `InputError`.
BAD_INPUT = 2


class FinalError(Exception):
    """Another attempt at a trial, in the same run, cannot succeed: a scheduler makes none.

    This says nothing about exit codes. Subclasses say what has happened, and so what becomes of
    the trial: bad input gives it up, a lost lease leaves it to another process.
    """


class InputError(ValueError):
    """Something the user gave cannot be used: commands exit with code 2, without a traceback.

    The message names the thing, the value, the place and the way out.
    """


class NoAnswerError(InputError):
    """Something the user named gave no answer and may give one later: a hub, a network disk.

    Commands end as with any InputError. A trial gets another attempt, as after a preemption.
    """


def is_final(error: BaseException) -> bool:
    """Return whether an error of a trial means that another attempt, in this run, cannot succeed.

    True for a FinalError, and for an InputError unless it is a NoAnswerError.
    """
    if isinstance(error, NoAnswerError):
        return False
    return isinstance(error, FinalError | InputError)
