"""A tree, file by file, as a value to compare: ``listing.py FOLDER`` prints it as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from typing import Any


def listing(top: str) -> dict[str, dict[str, Any]]:
    """Path → what is known of it; hard links by the first path of the same file."""
    found: dict[str, dict[str, Any]] = {}
    first: dict[tuple[int, int], str] = {}  # layers of an overlay have the same numbers
    todo = ["."]
    while todo:
        path = todo.pop()
        whole = os.path.join(top, path)
        status = os.lstat(whole)
        known: dict[str, Any] = {
            "mode": stat.filemode(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "mtime": status.st_mtime_ns,
            "xattrs": {
                name: os.getxattr(whole, name, follow_symlinks=False).hex()
                for name in os.listxattr(whole, follow_symlinks=False)
                if name.startswith("user.") or name == "security.capability"
            },
        }
        if stat.S_ISDIR(status.st_mode):
            todo += [os.path.join(path, name) for name in sorted(os.listdir(whole), reverse=True)]
        else:
            known["same"] = first.setdefault((status.st_dev, status.st_ino), os.path.normpath(path))
        if stat.S_ISLNK(status.st_mode):
            known["target"] = os.readlink(whole)
        if stat.S_ISREG(status.st_mode):
            with open(whole, "rb") as file:
                known["content"] = hashlib.sha256(file.read()).hexdigest()
        found[os.path.normpath(path)] = known
    return found


if __name__ == "__main__":
    print(json.dumps(listing(sys.argv[1])))
