# The commands of the README. Everything that they need is put into .venv here, and nowhere else.
#   make demo       see it work          make test   all tests; as root, as an ordinary user too
#   make lint       style, types, layers make bench  measure against the kernel's floor and other engines
#   make sanitize   the tests with AddressSanitizer and UndefinedBehaviorSanitizer
#   make fuzz       hostile bytes for all that reads what comes from inside; FUZZ_SECONDS for each target
#   make test-guest (as root) the tests in virtual machines with cgroup v2 only
#   make test-guest-systemd (as root) tests in sessions of systemd, of root and of an ordinary user
#   make test-older the tests without one of the newer system calls each
#   make venv       only the environment make clean  remove what was built

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
NATIVE := $(wildcard src/isobox/_native/*.c src/isobox/_native/*.h) src/isobox/_native/build.py
# Its name holds the place and the Python, so that a copy of this folder makes its own environment.
STAMP := .venv/stamp-$(shell printf '%s' "$(CURDIR) $(PYTHON)" | cksum | cut -d' ' -f1)
TESTS ?= tests
# Not the leaks, which measure memory that the sanitizers keep back; not the faults, which take away the
# descriptors and the processes that the sanitizers themselves need.
SANITIZE_TESTS ?= tests/unit tests/kernel
# What depends on whether a user has cgroups.
DELEGATED_TESTS ?= $(addprefix tests/kernel/test_,cgroups.py container.py devices.py doctor.py exec.py features.py \
    host_program.py idmap.py limits.py meaning.py namespaces.py placement.py popen.py reasons.py scope.py user.py) \
    tests/hostile/test_exhaustion.py tests/hostile/test_init.py
# What User Mode Linux can't show: cpusets, pressure, time namespaces, two CPUs, newer overlays and idmapped mounts.
QEMU_TESTS ?= tests/unit/test_host.py tests/unit/test_cgroups.py tests/kernel/test_doctor.py::test_here \
    tests/kernel/test_doctor.py::test_all_limits_work_for_root tests/kernel/test_namespaces.py \
    tests/kernel/test_rootfs.py tests/kernel/test_limits.py tests/kernel/test_cgroups.py tests/kernel/test_features.py \
    tests/kernel/test_meaning.py tests/kernel/test_devices.py tests/kernel/test_landlock.py::TestScopes \
    tests/images/test_snapshot.py::TestLife::test_on_older_kernels
OLDER_TESTS ?= tests/kernel
# Nothing differs there but how isobox-init and programs start.
STARTS := tests/kernel/test_exec.py tests/kernel/test_popen.py tests/kernel/test_container.py
OLDER_LACKS := mount_setattr,host_folders,landlock_paths,landlock_ports,landlock_scopes
PYTEST_ARGS ?=
# None named: all of them, see tests/fuzz/run.py.
FUZZ_TARGETS ?=
FUZZ_SECONDS ?= 60

.PHONY: demo test guests test-guest test-guest-uml test-guest-qemu test-guest-systemd test-older hosts lint bench sanitize fuzz venv clean

venv: $(STAMP)

$(STAMP): pyproject.toml setup.py $(NATIVE)
	@sh tests/prerequisites.sh build "$(PYTHON)"
	@echo "Building isobox in .venv (about a minute the first time) ..."
	@test -f $(STAMP) || { rm -rf .venv && "$(PYTHON)" -m venv .venv; }
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: venv
	@$(RUN) examples/quickstart.py

test: venv
	@sh tests/prerequisites.sh test "$(PYTHON)"
	$(RUN) -m pytest $(TESTS) $(PYTEST_ARGS)
# As root, again as an ordinary user, who has no cgroups; then as one who was given some. At last the table of
# docs/reference/hosts.md as every kind of user, on this host and as if it had cgroup v1 only.
	@if [ "$$(id -u)" = 0 ]; then \
	    set -ex; \
	    sh tests/as_user.sh $(RUN) -m pytest $(TESTS) $(PYTEST_ARGS); \
	    ISOBOX_DELEGATE=1 sh tests/as_user.sh $(RUN) -m pytest -m 'not slow' $(DELEGATED_TESTS) $(PYTEST_ARGS); \
	    sh tests/hosts.sh $(RUN) $(PYTEST_ARGS); \
	    sh tests/v1_only.sh sh tests/hosts.sh $(RUN) $(PYTEST_ARGS); \
	fi

guests: venv
	@sh tests/prerequisites.sh test "$(PYTHON)"
	@sh tests/prerequisites.sh guest "$(PYTHON)"

test-guest: test-guest-uml test-guest-qemu

test-guest-uml: guests
	$(RUN) tests/guest/guest.py --memory 8192 --timeout 3600 -- sh tests/guest/suite.sh $(RUN) $(PYTEST_ARGS)

test-guest-qemu: guests
	ISOBOX_MUST_WORK=1 ISOBOX_MAY_LACK= $(RUN) tests/guest/guest.py --qemu -- \
	    $(RUN) -m pytest -p no:cacheprovider -m 'not slow' $(QEMU_TESTS) $(PYTEST_ARGS)

test-guest-systemd: guests
	$(RUN) tests/guest/guest.py --systemd --timeout 3600 -- sh tests/guest/sessions.sh $(RUN)

# What the calls that nothing stands in for lead to is in tests/kernel/test_older.py, which make test runs.
test-older: venv
	@sh tests/prerequisites.sh test "$(PYTHON)"
	ISOBOX_MAY_LACK=$(OLDER_LACKS) $(RUN) tests/older.py linux-5.10 -- \
	    $(RUN) -m pytest -m 'not slow' $(OLDER_TESTS) $(PYTEST_ARGS)
	$(RUN) tests/older.py close_range -- $(RUN) -m pytest -m 'not slow' $(STARTS) $(PYTEST_ARGS)
	@if [ "$$(id -u)" = 0 ]; then \
	    set -ex; export ISOBOX_MAY_LACK=$(OLDER_LACKS); \
	    $(RUN) tests/older.py linux-5.10 -- sh tests/as_user.sh \
	        $(RUN) -m pytest -m 'not slow' $(OLDER_TESTS) $(PYTEST_ARGS); \
	fi

# Writes docs/reference/hosts.md and what lies in docs/reference/hosts/ anew: this host, v1 only, v2 in a guest.
RECORD := .cache/record
hosts: venv
	rm -rf $(RECORD) && mkdir -p $(RECORD) && chmod 1777 $(RECORD)
	ISOBOX_RECORD=$(CURDIR)/$(RECORD) sh tests/hosts.sh $(RUN)
	ISOBOX_RECORD=$(CURDIR)/$(RECORD) sh tests/v1_only.sh sh tests/hosts.sh $(RUN)
	ISOBOX_RECORD=$(CURDIR)/$(RECORD) $(RUN) tests/guest/guest.py --qemu -- sh tests/hosts.sh $(RUN)
	ISOBOX_RECORD=$(CURDIR)/$(RECORD) $(RUN) tests/guest/guest.py --systemd --user -- \
	    $(RUN) -m pytest -p no:cacheprovider -q tests/kernel/test_features.py
	cp $(RECORD)/* docs/reference/hosts/
	PYTHONPATH=tests $(RUN) tests/hosts.py

lint: venv
	@sh tests/prerequisites.sh lint "$(PYTHON)"
	$(BIN)/python -m ruff check --cache-dir .cache/ruff .
	$(BIN)/python -m ruff format --cache-dir .cache/ruff --check .
	$(BIN)/python -m mypy
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command as main; main()' --cache-dir .cache/layers
	$(BIN)/python -m towncrier build --draft --version next >/dev/null
	@if command -v aarch64-linux-gnu-gcc >/dev/null; then \
	    set -x; $(RUN) setup.py -q build_init --cc=aarch64-linux-gnu-gcc --output=.cache/isobox-init.aarch64; \
	else echo "isobox-init for aarch64 was not compiled: no aarch64-linux-gnu-gcc here"; fi

bench: venv
	@$(RUN) -m bench $(BENCH_ARGS)

# A second build in .cache/sanitize; the interpreter is not built so, hence the preloading. In a container
# the interpreter finds the ordinary build: one test compares the two.
sanitize: venv
	@sh tests/prerequisites.sh test "$(PYTHON)"
	ISOBOX_SANITIZE=1 $(RUN) setup.py -q build --build-base .cache/sanitize --build-lib .cache/sanitize/lib
	@nm -D .cache/sanitize/lib/isobox/_native/*.so | grep -q __asan_init
	PYTHONPATH="$(CURDIR)/.cache/sanitize/lib" \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	ISOBOX_SANITIZED=1 $(RUN) -m pytest -m 'not slow' $(SANITIZE_TESTS) \
	    --deselect tests/kernel/test_exec.py::test_the_interpreter_and_its_packages_are_there $(PYTEST_ARGS)

fuzz: venv
	@sh tests/prerequisites.sh fuzz "$(PYTHON)"
	@$(RUN) -c 'import atheris' 2>/dev/null || \
	    $(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@$(RUN) tests/fuzz/run.py $(FUZZ_SECONDS) $(FUZZ_TARGETS)

clean:
	rm -rf .venv .cache build dist src/*.egg-info src/isobox/_native/isobox-init src/isobox/_native/*.so
	rm -f src/isobox/_native/_isobox.c src/isobox/_native/*.o
	rm -rf bench/build
