"""What a user did wrong, told in one line."""


class UserError(ValueError):
    """The user's input is wrong: the message names the file, key or value, and the fix.

    The command prints the message without a traceback and exits with status 2.
    """
