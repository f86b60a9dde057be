"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake of the caller: one sentence with the field, its value and the remedy.

    Commands print it without a traceback and exit with code 2.
    """
