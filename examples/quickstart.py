"""Five programs that behave worse and worse, each in a container, and what each of them cost.

Run it with `make demo`, or `python examples/quickstart.py`.
"""

from __future__ import annotations

import sys
import time

import isobox
import show
from isobox import Container

COMPUTE = """
import time
end = time.process_time() + 0.5
while time.process_time() < end:
    sum(range(1000))
print("half a second of work is done")
"""

MEMORY_HOG = """
hoard = []
while True:
    hoard.append(bytearray(1 << 20))
"""

# Each process starts others, for ever.
FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

PROGRAMS = [
    ("says hello", ["sh", "-c", "echo hello from $(hostname), as user $(id -u)"], {}),
    ("computes for half a second", ["python3", "-c", COMPUTE], {}),
    ("never ends", ["sleep", "infinity"], {"timeout": 0.5}),
    ("eats all memory", ["python3", "-c", MEMORY_HOG], {"timeout": 20}),
    ("is a fork bomb", ["python3", "-c", FORK_BOMB], {"timeout": 1}),
    ("floods its output", ["yes"], {"timeout": 20, "output_limit": "1M"}),
    ("deletes /etc", ["sh", "-c", "rm -rf /etc/*; echo $(ls /etc | wc -l) files are left in /etc"], {}),
]


def limits() -> dict[str, object]:
    """Half a core, 128 MiB and 64 processes, as far as this user may set limits here."""
    wanted: dict[str, object] = {"cpu": 0.5, "memory": "128M", "pids": 64}
    try:
        with Container("host", **wanted):
            return wanted
    except isobox.UnsupportedError as error:
        print(show.paint(f"No limits for this user: {error}\n", "yellow"))
        return {}


def main() -> int:
    """Run every program and print the table."""
    options = limits()
    rows, colours = [], []
    start = time.monotonic()
    for what, args, extra in PROGRAMS:
        if not options and what in ("eats all memory", "is a fork bomb"):
            continue  # nothing here would hold it back
        with Container("host", **options) as container:
            result = container.exec(args, text=True, **extra)
        usage = result.usage
        if result.reason == "exited" and result.stdout:
            print(show.paint(f"  {result.stdout.strip()[:100]}", "dim"))
        rows.append(
            [
                what,
                show.seconds(usage.wall_time),
                show.seconds(usage.cpu_time),
                show.size(usage.memory_peak),
                show.count(usage.pids_peak),
                str(result.reason),
            ]
        )
        colours.append("green" if result.ok else "red")
    limited = ", ".join(f"{name} {value}" for name, value in options.items()) or "none"
    print(f"\nlimits of each container: {limited}\n")
    show.table(["the program", "wall", "CPU", "peak memory", "processes", "ended"], rows, colours=colours)
    print(f"\n{len(rows)} containers in {time.monotonic() - start:.1f} s. Nothing of them is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
