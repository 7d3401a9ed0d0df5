"""What programs find about themselves in /proc."""

from __future__ import annotations

from isobox import Container


def test_every_program_finds_itself_by_its_pid() -> None:
    """As ps, debuggers and language runtimes do: /proc/<getpid()> is the one that asks."""
    script = 'read -r pid rest < /proc/$$/stat && [ "$pid" = $$ ] && read -r self rest < /proc/self/stat'
    with Container("host") as c:
        for _ in range(3):
            result = c.exec(["sh", "-c", f"{script} && [ $self = $$ ]"], text=True)
            assert result.ok, result.stderr
