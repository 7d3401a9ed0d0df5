"""Forks of the host program: what they wait for.

The child of a fork has one thread. What another one was in the middle of stays half done in it: a module that
was being imported keeps its lock, a C library its state, and neither Python nor the library mends that.
"""

from __future__ import annotations

import os
import threading
from typing import Final

whole: Final = threading.RLock()
"""Held for what no fork may cut in two. The program's forks wait for it: it is for short and rare things."""

os.register_at_fork(
    before=whole.acquire,
    after_in_parent=whole.release,
    after_in_child=whole.release,  # its one thread has the identity of the one that forked, which holds it
)
