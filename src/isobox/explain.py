"""The plan for people: what a container is made of, in the order in which it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan.devices import DEVICES
from .plan.ops import Op, describe
from .spec import ContainerSpec

if TYPE_CHECKING:
    from .start import Launched


def explain(spec: ContainerSpec, ops: list[Op], launched: Launched | None) -> str:
    """Return the plan as text, one line an op; with `launched`, also what it became."""
    limits = spec.limits
    asked = {
        "cpu": limits.cpu, "cpu_weight": limits.cpu_weight, "memory": limits.memory, "swap": limits.swap,
        "pids": limits.pids, "disk": spec.disk,
        "hugetlb": limits.hugetlb or None,
    }  # fmt: skip
    lines = [
        f"image       {spec.image}",
        "limits      " + ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None),
        f"network     {spec.network}",
        f"userns      {spec.userns}",
        f"landlock    {spec.landlock}",
        "devices     " + ", ".join([*(f"/dev/{name}" for name in DEVICES), "/dev/pts", *spec.devices]),
    ]
    if launched is not None:
        lines.append(f"id          {launched.id}")
        lines.append(f"pid         {launched.pid}")
        if launched.id_map is not None:
            lines += [f"uid map     {i} -> {o}, {n} ids" for i, o, n in launched.id_map.uid_lines]
            lines += [f"gid map     {i} -> {o}, {n} ids" for i, o, n in launched.id_map.gid_lines]
        lines += [f"cgroup      {path}" for path in launched.group.paths]
        if launched.group.device_control:
            lines.append(f"held to the devices by {launched.group.device_control}")
    lines += [
        "",
        "clone (CLONE_VM, CLONE_VFORK and new namespaces), execveat of isobox-init; then, inside:",
        "",
    ]
    width = len(str(len(ops)))
    lines += [f"{number:>{width}}  {describe(op)}" for number, op in enumerate(ops, 1)]
    return "\n".join(lines) + "\n"
