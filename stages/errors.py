"""The one exception for wrong input: what is wrong, where, and what to do about it."""


class InputError(ValueError):
    """Wrong input from the user: a file, a key or a value.

    The message is one line that names the file, key or value and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


def missing(path: object) -> InputError:
    """The error for a file that a stage writes and that is not there."""
    return InputError(f"{path} is missing: run the stage that writes it (dvc repro)")


def one_line(error: Exception) -> str:
    """An exception's message on one line of at most 200 characters, or its type where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
