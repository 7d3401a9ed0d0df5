"""The goals that the project has set itself, checked against what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from .cases import WORK, Case

KIB = 1024


@frozen
class Goal:
    """A goal and what came of it: `value` is to be at most (or at least) `bound`; None: not measured."""

    case: str
    against: str
    value: float | None
    bound: float
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


def _ratio(case: Case | None, one: str, other: str, base: Case | None = None) -> float | None:
    """The median of one subject over that of another, of the same case or of `base`."""
    if case is None:
        return None
    upper, lower = case.median(one), (base or case).median(other)
    return upper / lower if upper is not None and lower else None


def _at_most(case: str, against: str, value: float | None, bound: float) -> Goal:
    return Goal(case, against, value, bound)


def goals(cases: Mapping[str, Case]) -> list[Goal]:
    """Every goal whose case was measured."""
    found: list[Goal] = []
    if shot := cases.get("oneshot"):
        mine = "isobox.run"
        for against, other, bound in (
            ("the floor", "floor", 2.0),
            ("bwrap", "bwrap --unshare-all", 1 / 3),
            ("runc", "runc run", 1 / 15),
            ("docker", "docker run", 1 / 100),
        ):
            found.append(_at_most("one-shot", f"of {against}", _ratio(shot, mine, other), bound))
        host = _ratio(shot, "isobox.run, host image", "floor, host image")
        found.append(_at_most("one-shot, host image", "of its floor", host, 2.0))
        if spaced := cases.get("spaced"):
            value = _ratio(spaced, "isobox.run", "isobox.run", shot)
            found.append(_at_most("100 ms apart", "of back to back", value, 1.3))
    if executed := cases.get("exec"):
        plain, full = "exec, measure=False", "exec, measure=True"
        found.append(_at_most("exec", "of subprocess.run", _ratio(executed, plain, "subprocess.run"), 1.0))
        found.append(
            _at_most("exec, measured", "of subprocess.run", _ratio(executed, full, "subprocess.run"), 2.5)
        )
        for name, kind, bound in (("exec", "measure=False", 1.0), ("exec, measured", "measure=True", 2.5)):
            mine, theirs = f"dynamic program: exec, {kind}", "dynamic program: subprocess.run"
            found.append(
                _at_most(
                    f"{name}, dynamic program", "of subprocess.run", _ratio(executed, mine, theirs), bound
                )
            )
    if resident := cases.get("resident"):
        for what in ("isobox.run", "exec"):
            value = _ratio(resident, f"{what}, 4 GB", f"{what}, 10 MB")
            found.append(_at_most(f"{what} from a parent of 4 GB", "of 10 MB", value, 1.1))
    if teardown := cases.get("teardown"):
        for count in (0, 100):
            value = _ratio(teardown, f"isobox, {count} processes", f"floor, {count} processes")
            found.append(_at_most(f"stop and clean up, {count} processes", "of the floor", value, 2.0))
    if threads := cases.get("threads"):
        value = _ratio(threads, "isobox.run, two threads", "isobox.run, one thread")
        found.append(Goal("two threads", "of one", value, 1.7, at_least=True))
    if idle := cases.get("idle"):
        with_network, without = idle.median("isobox"), idle.median("isobox, host network")
        found.append(Goal("memory of an idle container", "", with_network, 214 * KIB, unit="bytes"))
        found.append(Goal("memory, host network", "", without, 64 * KIB, unit="bytes"))
    if stdout := cases.get("stdout"):
        value = _ratio(stdout, "popen, readinto", "subprocess.run, captured")
        found.append(Goal("standard output", "of subprocess's capture", value, 4.0, at_least=True))
    if work := cases.get("work"):
        for name in WORK:
            if name == "system calls":
                continue
            value = work.paired(f"{name}, outside", f"{name}, inside")
            found.append(Goal(f"work inside: {name}", "of the host's speed", value, 0.97, at_least=True))
    return found
