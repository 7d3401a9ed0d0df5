#!/bin/sh
# usage: prerequisites.sh build|test|guest|lint|fuzz PYTHON
# Says which of Debian's packages are missing, and installs them where that is not a surprise:
# as root in CI, or as root on a Debian where the README's promise is that make does everything.
set -eu
what=$1
python=${2:-python3}
missing=
optional=

need() { missing="$missing $1"; }

if ! command -v "$python" >/dev/null 2>&1; then
    echo "isobox needs Python 3.11 or newer, and there is no $python here (make PYTHON=... names another)" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "isobox needs Python 3.11 or newer; $python is $("$python" -V 2>&1). make PYTHON=... names another" >&2
    exit 1
fi

case $what in
build)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
    "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || need python3-dev
    command -v "${CC:-gcc}" >/dev/null 2>&1 || need gcc
    # A gcc without the C library headers compiles nothing.
    [ -e /usr/include/stdio.h ] || need libc6-dev
    ;;
test)
    command -v newuidmap >/dev/null 2>&1 || need uidmap
    command -v useradd >/dev/null 2>&1 || need passwd
    command -v busybox >/dev/null 2>&1 || need busybox-static
    command -v stress-ng >/dev/null 2>&1 || need stress-ng
    command -v capsh >/dev/null 2>&1 || [ -x /usr/sbin/capsh ] || need libcap2-bin
    command -v ps >/dev/null 2>&1 || need procps
    command -v skopeo >/dev/null 2>&1 || need skopeo
    command -v umoci >/dev/null 2>&1 || need umoci
    command -v podman >/dev/null 2>&1 || need podman
    command -v mmdebstrap >/dev/null 2>&1 || need mmdebstrap
    command -v fsck.erofs >/dev/null 2>&1 || need erofs-utils
    command -v docker-registry >/dev/null 2>&1 || need docker-registry
    command -v htpasswd >/dev/null 2>&1 || need apache2-utils
    command -v openssl >/dev/null 2>&1 || need openssl
    ;;
guest)
    command -v linux.uml >/dev/null 2>&1 || need user-mode-linux
    command -v busybox >/dev/null 2>&1 || need busybox-static
    command -v mkfs.ext4 >/dev/null 2>&1 || need e2fsprogs
    command -v qemu-system-x86_64 >/dev/null 2>&1 || need qemu-system-x86
    [ -e /usr/lib/qemu/virtiofsd ] || need qemu-system-common
    [ -e /lib/systemd/systemd ] || need systemd
    [ -e /usr/share/pam-configs/systemd ] || need libpam-systemd
    command -v dbus-daemon >/dev/null 2>&1 || need dbus
    [ -e /usr/lib/systemd/user/dbus.socket ] || need dbus-user-session
    command -v newuidmap >/dev/null 2>&1 || need uidmap
    command -v useradd >/dev/null 2>&1 || need passwd
    ;;
fuzz)
    command -v clang >/dev/null 2>&1 || need clang
    # What -fsanitize=fuzzer,address,undefined links with.
    ls "$(clang -print-resource-dir 2>/dev/null)"/lib/*/libclang_rt.fuzzer* >/dev/null 2>&1 || need libclang-rt-dev
    ;;
lint)
    if [ "${CI:-}" = true ]; then
        command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || optional="gcc-aarch64-linux-gnu"
    fi
    ;;
*)
    echo "prerequisites.sh: no such set: $what" >&2
    exit 2
    ;;
esac

[ -n "$missing$optional" ] || exit 0
install="apt-get install --no-install-recommends$missing${optional:+ $optional}"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing what is missing: $install"
    log=$(mktemp)
    # shellcheck disable=SC2086  # a list of packages
    if (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
        --no-install-recommends $missing $optional) >"$log" 2>&1; then
        rm -f "$log"
        case "$missing " in
        *" docker-registry "*)
            # The tests run registries of their own; nobody has asked for a service on port 5000.
            if [ -d /run/systemd/system ]; then
                systemctl --quiet disable --now docker-registry.service || :
            else
                service docker-registry stop >/dev/null 2>&1 || :
                update-rc.d docker-registry disable >/dev/null 2>&1 || :
            fi
            ;;
        esac
        exit 0
    fi
    cat "$log" >&2
    rm -f "$log"
fi
[ -n "$missing" ] || exit 0
case $what in
build)
    echo "To build isobox, this is missing. On Debian or Ubuntu, as root: $install" >&2
    exit 1
    ;;
fuzz)
    echo "To fuzz, this is missing. On Debian or Ubuntu, as root: $install" >&2
    exit 1
    ;;
*)
    echo "Some tests will be skipped. On Debian or Ubuntu, as root: $install" >&2
    ;;
esac
