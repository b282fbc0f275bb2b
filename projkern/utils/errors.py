"""The errors of this package, which a command reports in one line; any other is a bug and keeps its traceback."""


class ProjkernError(Exception):
    """What a user can fix: the input, the machine or the files. The message says how."""


class InputError(ProjkernError, ValueError):
    """An argument, a setting or a file that cannot be used; the message says what it was and what it must be."""


class MissingDependency(ProjkernError, ImportError):
    """An optional package that is not installed; the message says how to install it."""
