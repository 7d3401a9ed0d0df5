"""Users of a container: a name or number becomes ids, by the container's own passwd and group files.

The files come from inside and are parsed as hostile: bounded, malformed lines skipped.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import SpecError
from .plan.exec import User

FILE_MAX = 1 << 20
_ID_MAX = 2**32 - 2


def resolve(user: str | None, read: Callable[[str], str]) -> User:
    """Return the ids of ``"name"``, ``"uid"``, ``"name:group"`` or ``"uid:gid"``; None is root.

    `read` gives the text of a file of the container, "" where there is none. Raises `SpecError`.

    >>> passwd = {"/etc/passwd": "app:x:10:20::/srv/app:/bin/sh\\n", "/etc/group": "web:x:30:app\\n"}
    >>> resolve("app", lambda path: passwd[path])
    User(uid=10, gid=20, groups=(20, 30), home='/srv/app')
    """
    if user is None or user in ("0", "0:0"):
        return User()
    name, _, group = user.partition(":")
    entry = _passwd(name, read("/etc/passwd"))
    if entry is None:
        number = _number(name)
        if number is None:
            raise SpecError("user", user, "a user of the container's /etc/passwd, or a uid such as 1000")
        entry = (name, number, 0, "/root" if number == 0 else "/")
    login, uid, gid, home = entry
    if group:
        found = _group(group, read("/etc/group"))
        if found is None:
            raise SpecError("user", user, "a group of the container's /etc/group, or a gid such as 1000")
        return User(uid, found, (found,), home)
    return User(uid, gid, _supplementary(login, gid, read("/etc/group")), home)


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    return None


def _passwd(name: str, text: str) -> tuple[str, int, int, str] | None:
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) < 7:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and name in (fields[0], fields[2]):
            home = fields[5] if fields[5].startswith("/") and "\0" not in fields[5] else "/"
            return fields[0], uid, gid, home
    return None


def _group(name: str, text: str) -> int | None:
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == name and (found := _number(fields[2])) is not None:
            return found
    return _number(name)


def _supplementary(login: str, gid: int, text: str) -> tuple[int, ...]:
    groups = [gid]
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) < 4 or login not in fields[3].split(","):
            continue
        found = _number(fields[2])
        if found is not None and found not in groups and len(groups) < 64:
            groups.append(found)
    return tuple(groups)
