"""The one exception that a user can mend: the command line prints it as a line and exits with 2."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file, row or flag, what was expected and the next step, in one line. Anything else that is
    raised is a defect of ours and keeps its traceback.
    """


class Unavailable(InputError):
    """Something that is needed lies nowhere within reach: not in the cache, not in a mirror, not at its publisher."""
