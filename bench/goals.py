"""The goals that the project has set itself, checked against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen

from .cases import WORK, Case

KIB = 1024


@frozen
class Goal:
    """A goal and what came of it: `value` is to be at most (or at least) `bound`; None: not measured.

    `floor` is what the C program that does the same work reaches: where it misses the bound too, so must
    everybody who does that work while the caller waits.
    """

    case: str
    against: str
    value: float | None
    bound: float
    floor: float | None = None
    at_least: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether it holds; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def missed_by(self) -> float:
        """By what part of the bound it is missed; 0 when met or not measured."""
        if self.met is not False:
            return 0.0
        assert self.value is not None
        return abs(self.value - self.bound) / self.bound


def _ratio(case: Case, one: str, other: str, base: Case | None = None) -> float | None:
    """The median of one subject over that of another, of the same case or of `base`."""
    upper, lower = case.median(one), (base or case).median(other)
    return upper / lower if upper is not None and lower else None


def _oneshot(shot: Case, spaced: Case | None) -> list[Goal]:
    mine, floor = "isobox.run", "floor"
    found = [Goal("one-shot", "of the floor", _ratio(shot, mine, floor), 2.0, 1.0)]
    for against, other, bound in (
        ("of bwrap", "bwrap --unshare-all", 1 / 3),
        ("of runc", "runc run", 1 / 15),
        ("of docker", "docker run", 1 / 100),
    ):
        found.append(Goal("one-shot", against, _ratio(shot, mine, other), bound, _ratio(shot, floor, other)))
    host = _ratio(shot, "isobox.run, host image", "floor, host image")
    found.append(Goal("one-shot, host image", "of its floor", host, 2.0, 1.0))
    if spaced is not None:
        apart, floors = _ratio(spaced, mine, mine, shot), _ratio(spaced, floor, floor, shot)
        found.append(Goal("one-shot, 100 ms apart", "of back to back", apart, 1.3, floors))
    return found


def _exec(case: Case) -> list[Goal]:
    found = []
    for prefix, title, plain, grouped in (
        ("", "", "floor: server inside", "floor: server inside, own groups"),
        ("dynamic program: ", ", dynamic program", "dynamic program: floor", ""),
    ):
        base = f"{prefix}subprocess.run"
        for name, kind, bound, floor in (
            ("exec", "measure=False", 1.0, plain),
            ("exec, measured", "measure=True", 2.5, grouped),
        ):
            value = _ratio(case, f"{prefix}exec, {kind}", base)
            found.append(Goal(f"{name}{title}", "of subprocess.run", value, bound, _ratio(case, floor, base)))
    return found


def _resident(case: Case) -> list[Goal]:
    return [
        Goal(f"{what}, parent of 4 GB", "of 10 MB", _ratio(case, f"{what}, 4 GB", f"{what}, 10 MB"), 1.1)
        for what in ("isobox.run", "exec")
    ]


def _images(case: Case) -> list[Goal]:
    one, many = "image of 1 layer", "image of 100 layers"
    return [
        Goal(f"start, {title}{when.replace(',', '')}", f"of {word}", case.paired(upper, lower), bound)
        for when in ("", ", 30 ms apart")
        for title, word, upper, lower, bound in (
            ("100 layers", "one", f"{many}{when}", f"{one}{when}", 1.3),
            ("image", "a folder", f"{one}{when}", f"folder{when}", 1.1),
        )
    ]


def _teardown(case: Case) -> list[Goal]:
    found = []
    for count in (0, 100):
        value = _ratio(case, f"isobox, {count} processes", f"floor, {count} processes")
        found.append(Goal(f"stop and clean up, {count} processes", "of the floor", value, 2.0, 1.0))
    return found


def _snapshot(case: Case) -> list[Goal]:
    names = ("snapshot", "restore", "restore, 20 ms apart")
    return [Goal(f"{what}, 20 files", "", case.median(what), 5e6, unit="ns") for what in names]


def _threads(case: Case) -> list[Goal]:
    value = _ratio(case, "isobox.run, two threads", "isobox.run, one thread")
    floor = _ratio(case, "floor, two processes", "floor, one process")
    return [Goal("two threads", "of one", value, 1.7, floor, at_least=True)]


def _idle(case: Case) -> list[Goal]:
    names = (("memory, idle container", "", 214), ("memory, idle, host network", ", host network", 64))
    return [
        Goal(title, "", case.median(f"isobox{more}"), bound * KIB, case.median(f"floor{more}"), unit="bytes")
        for title, more, bound in names
    ]


def _stdout(case: Case) -> list[Goal]:
    base = "subprocess.run, captured"
    value, floor = _ratio(case, "popen, readinto", base), _ratio(case, "floor: a pipe of 1 MiB", base)
    return [Goal("standard output", "of subprocess's capture", value, 4.0, floor, at_least=True)]


def _work(case: Case) -> list[Goal]:
    return [
        Goal(
            f"work inside: {name}",
            "of the host's speed",
            case.paired(f"{name}, outside", f"{name}, inside"),
            0.97,
            at_least=True,
        )
        for name in WORK
        if name != "system calls"
    ]


def _unpacking(case: Case) -> list[Goal]:
    value = case.paired("tarfile", "isobox")
    return [Goal("unpack a gzip layer", "of tarfile's speed", value, 4.0, at_least=True)]


def _pulling(case: Case) -> list[Goal]:
    return [
        Goal(f"pull 200 MB: {peer}", "of its time", case.paired("isobox pull", peer), 1.0)
        for peer in ("podman pull", "skopeo, umoci")
    ]


def goals(cases: Mapping[str, Case]) -> list[Goal]:
    """Every goal whose case was measured."""
    found: list[Goal] = []
    if "oneshot" in cases:
        found += _oneshot(cases["oneshot"], cases.get("spaced"))
    checks: Mapping[str, Callable[[Case], list[Goal]]] = {
        "exec": _exec,
        "resident": _resident,
        "images": _images,
        "teardown": _teardown,
        "snapshot": _snapshot,
        "threads": _threads,
        "idle": _idle,
        "stdout": _stdout,
        "work": _work,
        "unpacking": _unpacking,
        "pulling": _pulling,
    }
    for name, check in checks.items():
        if name in cases:
            found += check(cases[name])
    return found
