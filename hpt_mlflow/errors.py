"""The one exception that this project raises for its users, and how to quote those of others."""

from __future__ import annotations

import re
from collections.abc import Mapping

# What stands before the host of an address; a port does not, and an example of ours is not a secret. SQLAlchemy takes
# passwords with spaces, so that one may end at a later word, but not at one that begins another address.
PASSWORD = re.compile(r"(://[^\s:/@]*):(?!\d{1,5}(?![^\s/?#:,;'\")\]}])|PASSWORD@)(?:\S*|[^\s:/@]+ [^\s:/@]+)@")
# On the web, a user without a password is a token.
TOKEN_AS_USER = re.compile(r"(\bhttps?://)[^\s:/@*]+@", re.IGNORECASE)
# Options that carry secrets. ODBC's are encoded, in one option of SQLAlchemy's.
SECRET_OPTION = re.compile(
    r"((?:[?&;]|%3B)(?:[\w.-]*(?:passw(?:or)?d|pwd|passphrase|token|secret|signature|credential)[\w.-]*"
    r"|(?:[\w-]+[_-])?(?:api)?key|sig)(?:=|%3D))(?:(?!%3B|:(?:\s|$))[^&;\s'\"])+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text with `***` in place of passwords and tokens in addresses."""
    text = TOKEN_AS_USER.sub(r"\1***@", PASSWORD.sub(r"\1:***@", text))
    return SECRET_OPTION.sub(r"\1***", text)


def one_line(error: BaseException) -> str:
    """The first line of an error's text, without secrets, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__


def valid_unicode(text: str) -> str:
    """The text as Unicode that can be sent and stored, as names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """The text as valid Unicode on one line."""
    valid = valid_unicode(text)
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in valid)


def differences(here: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    """What `here` says otherwise than `there`, each as `NAME VALUE instead of VALUE`."""
    return [
        f"{name} {here.get(name)!r} instead of {there.get(name)!r}"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]


class HptError(Exception):
    """Something the user can mend, as one line: `SETTING: PROBLEM; REMEDY`.

    Attributes:
        setting: the setting that it is about; empty where it is about none.
        problem: what is wrong, with the value.
        remedy: what to do.
    """

    def __init__(self, problem: str, remedy: str = "", *, setting: str = "") -> None:
        self.setting, self.problem, self.remedy = setting, problem, remedy
        start, end = f"{setting}: " if setting else "", f"; {remedy}" if remedy else ""
        super().__init__(without_secrets(f"{start}{problem}{end}"))

    def about(self, setting: str) -> HptError:
        """The same error from a command that has another name for the setting."""
        return HptError(self.problem, self.remedy, setting=setting)
