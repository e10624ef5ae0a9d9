"""The one exception that this project raises on purpose."""


class HptError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, with which value, and what to do."""
