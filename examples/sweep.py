"""A parameter sweep: compress this Python's own library at many settings, each run measured.

    python examples/sweep.py                   a table
    python examples/sweep.py --csv costs.csv   and a file of every number, with where it was read

Each setting is an exec of its own in one container, so it has a cgroup of its own: the numbers are those
of the kernel for that run alone, all of its processes together.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import show
from isobox import Container, Result

WORKER = """
import importlib, json, sys
codec, level, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = open(path, "rb").read()
module = importlib.import_module(codec)
packed = module.compress(data, preset=level) if codec == "lzma" else module.compress(data, level)
print(json.dumps({"before": len(data), "after": len(packed)}))
"""

SETTINGS = [("zlib", level) for level in (1, 6, 9)] + [("bz2", 1), ("bz2", 9), ("lzma", 0), ("lzma", 4)]
MEASURES = ["wall_time", "cpu_time", "cpu_user", "cpu_system", "memory_peak", "io_read", "io_write"]


def library(limit: int) -> bytes:
    """The sources of this Python's library, up to a number of bytes: real text to work on."""
    sources = sorted(Path(argparse.__file__).parent.glob("*.py"))
    return b"".join(path.read_bytes() for path in sources)[:limit]


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description="Compress at many settings and measure each run.")
    parser.add_argument("--megabytes", type=float, default=2.0, help="how much to compress (default: 2)")
    parser.add_argument("--csv", type=Path, help="write every number to this file")
    options = parser.parse_args()

    runs: list[tuple[str, int, float, Result]] = []
    with Container("host") as container:
        container.write_bytes("/tmp/input", library(int(options.megabytes * 2**20)))
        container.write_text("/tmp/worker.py", WORKER)
        for codec, level in SETTINGS:
            args = ["python3", "/tmp/worker.py", codec, str(level), "/tmp/input"]
            result = container.exec(args, text=True, timeout=120, check=True)
            sizes = dict(
                item.split(": ") for item in result.stdout.strip("{}\n").replace('"', "").split(", ")
            )
            runs.append((codec, level, int(sizes["before"]) / int(sizes["after"]), result))

    rows = [
        [
            codec,
            str(level),
            f"{ratio:.2f}",
            show.seconds(result.usage.wall_time),
            show.seconds(result.usage.cpu_time),
            show.size(result.usage.memory_peak),
            "; ".join(result.usage.notes),
        ]
        for codec, level, ratio, result in runs
    ]
    show.table(["codec", "level", "ratio", "wall", "CPU", "peak memory", "notes"], rows)
    sources = runs[0][3].usage.sources
    for measure in MEASURES:
        print(f"{measure}: {sources.get(measure, 'not known here')}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["codec", "level", "ratio", *MEASURES])
            for codec, level, ratio, result in runs:
                writer.writerow([codec, level, ratio, *(getattr(result.usage, name) for name in MEASURES)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
