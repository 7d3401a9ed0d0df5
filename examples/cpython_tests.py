"""Run test modules of the Python in use inside the host image and outside, and compare each test.

    python examples/cpython_tests.py                     the five modules below
    python examples/cpython_tests.py test_json test_os   others

A container on the host image is a whole system to a program: processes, threads, sockets, signals and
files behave as they do outside. CPython's own tests say whether that is true.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import show
from isobox import Container

MODULES = ["test_json", "test_sqlite3", "test_subprocess", "test_threading", "test_socket"]

# Prints one line of JSON: the outcome of every test by its name.
RUNNER = """
import json, os, sys, unittest
# They talk to a hypervisor, and wait for ever where there is one that does not answer.
LEFT_OUT = ("VSOCK",)

class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcomes = {}
    def stopTest(self, test):
        self.outcomes.setdefault(test.id(), "ok")
        super().stopTest(test)
    def addError(self, test, error):
        self.outcomes[test.id()] = "error"
    def addFailure(self, test, error):
        self.outcomes[test.id()] = "failed"
    def addSkip(self, test, reason):
        self.outcomes[test.id()] = "skipped"
    def addExpectedFailure(self, test, error):
        self.outcomes[test.id()] = "expected failure"
    def addUnexpectedSuccess(self, test):
        self.outcomes[test.id()] = "unexpected success"
    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.outcomes[test.id()] = "failed"

def tests(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests(item)
        elif not any(word in item.id() for word in LEFT_OUT):
            yield item

out = os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
os.dup2(null, 2)
found = unittest.defaultTestLoader.loadTestsFromName("test." + sys.argv[1])
outcomes = Outcomes()
unittest.TestSuite(tests(found)).run(outcomes)
print(json.dumps(outcomes.outcomes), file=out, flush=True)
"""

Outcomes = dict[str, str]
GOOD = ("ok", "expected failure")


def outside(module: str) -> Outcomes:
    """Run a module's tests as an ordinary child process."""
    with tempfile.TemporaryDirectory() as folder:
        args = [sys.executable, "-c", RUNNER, module]
        done = subprocess.run(args, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    return json.loads(done.stdout or "{}")


def inside(module: str) -> tuple[Outcomes, str]:
    """Run a module's tests in a container of their own; also how that ended.

    With the host's name, which some tests look up, and for root with the capability to change it: root
    inside is nobody outside, so that changes nothing there.
    """
    extra = ["SYS_ADMIN"] if os.geteuid() == 0 else []
    with Container("host", hostname=socket.gethostname(), cap_add=extra) as container:
        args = [sys.executable, "-c", RUNNER, module]
        result = container.exec(args, text=True, timeout=600, workdir="/tmp")
    return json.loads(result.stdout or "{}"), str(result.reason)


def is_shipped(module: str) -> bool:
    """Some distributions leave CPython's tests out."""
    found = importlib.util.find_spec("test") and importlib.util.find_spec(f"test.{module}")
    return found is not None


def differing(here: Outcomes, there: Outcomes) -> list[str]:
    """The tests that are good outside, and something else or absent inside."""
    return [name for name, outcome in here.items() if outcome in GOOD and there.get(name) != outcome]


def main() -> int:
    """Compare, and exit with 1 where a test fails inside that passes outside."""
    rows, colours, differences = [], [], []
    modules = sys.argv[1:] or MODULES
    shipped = [module for module in modules if is_shipped(module)]
    with ThreadPoolExecutor(6) as threads:  # most of these tests wait most of the time
        runs_outside = threads.map(outside, shipped)
        runs_inside = threads.map(inside, shipped)
        results = dict(zip(shipped, zip(runs_outside, runs_inside, strict=True), strict=True))
    for module in modules:
        if module not in results:
            rows.append([module, "-", "-", "-", "-", "this Python ships without it"])
            colours.append(None)
            continue
        here, (there, reason) = results[module]
        if differing(here, there):  # some of them depend on timing: once more, with nothing beside it
            again, reason = inside(module)
            there |= {name: outcome for name, outcome in again.items() if name in differing(here, there)}
        if not there:
            differences.append(f"{module}: nothing ran inside ({reason})")
        worse = differing(here, there)
        differences += [f"{name}: {here[name]} outside, {there.get(name, 'absent')} inside" for name in worse]
        passed = [sum(outcome == "ok" for outcome in outcomes.values()) for outcomes in (here, there)]
        skipped = [sum(outcome == "skipped" for outcome in outcomes.values()) for outcomes in (here, there)]
        rows.append(
            [module, *map(str, passed), *map(str, skipped), f"{len(worse)} differ" if worse else "same"]
        )
        colours.append("red" if worse else "green")
    show.table(
        ["module", "passed outside", "inside", "skipped outside", "inside", "result"], rows, colours=colours
    )
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
