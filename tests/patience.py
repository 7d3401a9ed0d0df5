"""How long tests wait where everything takes longer: ISOBOX_PATIENCE says how many times (1).

It stretches what bounds the time that isobox or a test takes, and never a limit that isobox is to hold. In a
guest it is also multiplied by how much slower than its host that is.
"""

from __future__ import annotations

import os

TIMES = max(1.0, float(os.environ.get("ISOBOX_PATIENCE", "1")))


def patient(seconds: float) -> float:
    """So many seconds on a machine of usual speed, here."""
    return seconds * TIMES
