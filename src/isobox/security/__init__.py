"""What a program inside may do, as data: capabilities, the seccomp filter, hidden paths.

Nothing here touches the running process or a container. `capabilities` and `paths` are tables;
`seccomp.compile` turns a profile into the bytes that isobox-init gives to the kernel.
"""
