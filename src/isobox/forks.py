"""Forks of the host program: what they wait for.

The child of a fork has one thread. What another one was in the middle of stays half done in it: a module that
was being imported keeps its lock, a C library its state, and neither Python nor the library mends that.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Final

whole: Final = threading.RLock()
"""Held for what no fork may cut in two. The program's forks wait for it: it is for short and rare things."""

os.register_at_fork(
    before=whole.acquire,
    after_in_parent=whole.release,
    after_in_child=whole.release,  # its one thread has the identity of the one that forked, which holds it
)

if TYPE_CHECKING:
    kept = functools.cached_property
else:

    class kept(functools.cached_property):  # it is used as that one is
        """A cached_property without the lock that it has before Python 3.12: a fork may leave that held.

        Two threads that ask for the first time at once both find it out.
        """

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return self
            if self.attrname not in instance.__dict__:
                instance.__dict__[self.attrname] = self.func(instance)
            return instance.__dict__[self.attrname]
