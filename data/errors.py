"""What is wrong with a data set, told in one line."""


class DataError(ValueError):
    """A set is unknown, missing, damaged or wrongly declared: the message names it and the fix."""
