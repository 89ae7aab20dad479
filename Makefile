# Consentier. `make` lists the targets; each says what it is doing.
# Needs Python 3.11 to 3.13 with venv and a package index that pip reaches. Environments and build results
# stand in .venv-*/ and .build/, and are made again when the lock or the sources have changed.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadscope
DEMO_OUT ?= demo-output
FUZZ_SECONDS ?= 60

LOCK := requirements/lock.txt
LOWER_BOUNDS := requirements/lower-bounds.txt
# All extras but spark, whose engine is larger than the rest together, fuzz, which few machines have wheels of, and
# bench, which brings peers to compare with.
LOCKED_EXTRAS := $(foreach extra,cli train notebooks docs dev services,--extra $(extra))
PACKAGED := consent features models serving training src
# Folders stand for files that were removed or renamed.
SOURCES := pyproject.toml README.md LICENSE scripts/build_distributions.py \
	$(shell find $(PACKAGED) \( -name __pycache__ -o -name '*.egg-info' \) -prune -o \
		\( -type d -o -name '*.py' -o -name '*.toml' -o -name py.typed \) -print)

ROOT := $(CURDIR)
PIP := bin/python -m pip --disable-pip-version-check --quiet
INSTALL_WHEEL := install --no-deps --no-index --force-reinstall .build/dist/*.whl
TEST := .venv-test
SAY := @printf '\n==> %s\n'

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo service test lint types contracts tests explore test-services fuzz test-lower-bounds \
	test-newest release dev wheel \
	benchmark-import bench-env docs lock clean

help:  ## Show this list
	@printf 'Targets (PYTHON=%s):\n' '$(PYTHON)'
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  \1\t\2/p' Makefile | expand -t 22

demo: .venv-demo/.wheel  ## Simulate a shop, train and compare all models, write an HTML report
	$(SAY) 'Running the demo; results go to $(DEMO_OUT)/'
	.venv-demo/bin/consentier demo --out '$(DEMO_OUT)' --force

service: dev  ## Serve a simulated shop with a page to try, on port 8000 of this machine
	$(SAY) 'Serving the shop; the first start simulates and trains it'
	.venv/bin/python -m examples.service --out '$(DEMO_OUT)/service'

test: lint types contracts tests  ## Lint, types, import contracts and tests, against the built wheel
	$(SAY) 'All checks passed'

lint: $(TEST)/.requirements  ## Lint and formatting (ruff)
	$(SAY) 'Linting and checking the formatting'
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .

# Outside the tree, so that the installed wheel is checked and not the folders of the tree.
types: $(TEST)/.wheel  ## Types of the installed wheel, of a service written against it, and of the benchmarks (mypy --strict)
	$(SAY) 'Checking the types of the installed wheel'
	@mkdir -p .build/outside
	cd .build/outside && '$(ROOT)/$(TEST)/bin/mypy' --config-file '$(ROOT)/pyproject.toml' \
		--cache-dir '$(ROOT)/.mypy_cache' -p consentier
	cd .build/outside && '$(ROOT)/$(TEST)/bin/mypy' --config-file '$(ROOT)/pyproject.toml' \
		--cache-dir '$(ROOT)/.mypy_cache' '$(ROOT)/tests/typing/api.py'
	cd .build/outside && MYPYPATH='$(ROOT)' '$(ROOT)/$(TEST)/bin/mypy' --config-file '$(ROOT)/pyproject.toml' \
		--cache-dir '$(ROOT)/.mypy_cache' -p benchmarks

contracts: $(TEST)/.wheel  ## Import contracts of the installed wheel (import-linter)
	$(SAY) 'Checking the import contracts of the installed wheel'
	@mkdir -p .build/outside
	cd .build/outside && '$(ROOT)/$(TEST)/bin/lint-imports' --config '$(ROOT)/pyproject.toml' --no-cache --no-logo

tests: $(TEST)/.wheel  ## The tests that need no service (pytest)
	$(SAY) 'Testing the installed wheel'
	CONSENTIER_TESTED=wheel $(TEST)/bin/pytest $(PYTEST_ARGS)

explore: $(TEST)/.wheel  ## The property tests with new random examples, and more of them (nightly)
	$(SAY) 'Trying the properties on new examples'
	CONSENTIER_TESTED=wheel HYPOTHESIS_PROFILE=explore $(TEST)/bin/pytest $(PYTEST_ARGS) -m 'hypothesis and not service'

test-services: $(TEST)/.wheel .venv-spark/.wheel  ## The tests against real services: PostgreSQL, Redis, Chromium, Spark
	$(SAY) 'Testing against real services'
	@echo 'PostgreSQL: its server programs (Debian, Ubuntu: apt-get install postgresql), started for the tests in a'
	@echo 'temporary directory; or CONSENTIER_TEST_POSTGRESQL=postgresql://... of an empty database for tests.'
	@echo 'Redis: its server program (apt-get install redis-server), started likewise; or CONSENTIER_TEST_REDIS=redis://...'
	@echo 'Chromium: installed (apt-get install chromium), or CONSENTIER_TEST_CHROMIUM=/path/of/one.'
	CONSENTIER_TESTED=wheel $(TEST)/bin/pytest -m service --ignore-glob '*/test_spark_*.py'
	@echo 'Spark: in local mode, in an environment of its own; needs Java 17 (Debian: openjdk-17-jre-headless).'
	CONSENTIER_TESTED=wheel .venv-spark/bin/pytest -m service tests/services/test_spark_*.py

fuzz: .venv-fuzz/.wheel  ## Coverage-guided fuzzing of every parser and loader (FUZZ_SECONDS each, by default 60)
	$(SAY) 'Fuzzing every parser and loader for $(FUZZ_SECONDS) seconds'
	@for program in fuzz_signals fuzz_loaders; do \
		for target in $$(.venv-fuzz/bin/python fuzz/$$program.py --list 2>/dev/null); do \
			echo "$$target"; \
			.venv-fuzz/bin/python fuzz/$$program.py $$target -max_total_time=$(FUZZ_SECONDS) \
				>.build/fuzz-$$target.log 2>&1 || { tail -40 .build/fuzz-$$target.log; exit 1; }; \
		done; \
	done

test-lower-bounds: .venv-lower-bounds/.wheel  ## The tests with the oldest versions allowed (Python 3.11)
	$(SAY) 'Testing the installed wheel with the oldest versions that pyproject.toml allows'
	CONSENTIER_TESTED=wheel .venv-lower-bounds/bin/pytest $(PYTEST_ARGS)

test-newest: .venv-newest/.wheel  ## The tests with the newest version of every dependency (nightly)
	$(SAY) 'Testing the installed wheel with the newest versions that there are'
	CONSENTIER_TESTED=wheel .venv-newest/bin/pytest $(PYTEST_ARGS)

release: .venv-build/.requirements  ## Version, changelog, checked distributions, provenance, tag: VERSION=0.2.0 [DRY_RUN=1]
	$(SAY) 'Making the release in a clone beside this tree'
	.venv-build/bin/python scripts/release.py '$(VERSION)' $(if $(DRY_RUN),--dry-run)

dev: .venv/.requirements  ## An editable install with all extras in .venv
	$(SAY) 'Installing the tree into .venv, editable'
	.venv/$(PIP) install --no-deps --no-build-isolation --editable .
	@echo 'Activate it with: . .venv/bin/activate'

wheel: .build/dist/.built  ## Build sdist and wheel into .build/dist

benchmark-import: $(TEST)/.wheel  ## Time of `import consentier` and of the first answer
	$(SAY) 'Measuring import times, relative to NumPy'
	$(TEST)/bin/python benchmarks/import_time.py

bench-env: .venv-bench/.wheel  ## Consentier and its peers in .venv-bench, for benchmarks/quality
	@echo 'Run, for instance: .venv-bench/bin/python -m benchmarks.quality.session --data DATA --set diginetica'

docs: $(TEST)/.wheel  ## Build the documentation as a site in .build/site, its notebooks executed
	$(SAY) 'Building the documentation'
	NO_MKDOCS_2_WARNING=1 $(TEST)/bin/mkdocs build --quiet
	@echo 'Open .build/site/index.html; to search, too: $(PYTHON) -m http.server --directory .build/site'

lock:  ## Resolve requirements/*.txt anew
	$(SAY) 'Resolving the lock and the lower bounds'
	$(PYTHON) -m venv .venv-lock
	.venv-lock/$(PIP) install uv
	rm -f $(LOCK) $(LOWER_BOUNDS)
	.venv-lock/bin/uv pip compile --quiet --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 $(LOCKED_EXTRAS) \
		-c requirements/constraints.in pyproject.toml --universal -o $(LOCK)
	.venv-lock/bin/uv pip compile --quiet --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --python-version 3.11 $(LOCKED_EXTRAS) \
		-c requirements/constraints.in pyproject.toml --resolution lowest-direct -o $(LOWER_BOUNDS)

clean:  ## Remove environments, build results and caches
	rm -rf .venv .venv-test .venv-spark .venv-fuzz .venv-demo .venv-bench .venv-build .venv-lock \
		.venv-lower-bounds .venv-newest .build build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --- environments -----------------------------------------------------------------------------------------

define new_environment
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo '$(PYTHON) is not Python 3.11 to 3.13: name one with make PYTHON=...'; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
endef

.venv/.requirements .venv-test/.requirements: $(LOCK)
	$(SAY) 'Installing the locked requirements into $(@D) (some minutes the first time)'
	$(new_environment)
	$(@D)/$(PIP) install --no-compile --no-deps -r $(LOCK)
	@touch $@

.venv-demo/.requirements: $(LOCK) | .build/dist/.built
	$(SAY) 'Installing what training needs into $(@D) (some minutes the first time)'
	$(new_environment)
	$(@D)/$(PIP) install -c $(LOCK) "$$(ls .build/dist/*.whl)[train]"
	@touch $@

.venv-bench/.requirements: $(LOCK) | .build/dist/.built
	$(SAY) 'Installing what the benchmarks need into $(@D) (some minutes the first time)'
	$(new_environment)
	$(@D)/$(PIP) install -c $(LOCK) "$$(ls .build/dist/*.whl)[bench]"
	@touch $@

.venv-spark/.requirements: $(LOCK)
	$(SAY) 'Installing Spark into $(@D) (some minutes the first time)'
	$(new_environment)
	$(@D)/$(PIP) install -c $(LOCK) 'pyspark>=4.0,<4.1' 'ibis-framework[duckdb,pyspark]' pyarrow numpy scipy \
		mlflow numba joblib threadpoolctl scikit-learn implicit pydantic sqlalchemy typer pytest hypothesis
	@touch $@

.venv-fuzz/.requirements: $(LOCK)
	$(SAY) 'Installing the fuzzer into $(@D)'
	$(new_environment)
	$(@D)/$(PIP) install -c $(LOCK) 'atheris==3.0.0' numpy pyarrow pydantic scipy joblib numba threadpoolctl
	@touch $@

.venv-lower-bounds/.requirements: $(LOWER_BOUNDS)
	$(SAY) 'Installing the oldest allowed versions into $(@D)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo 'the lower bounds are those of Python 3.11: name one with make PYTHON=...'; exit 1; }
	$(new_environment)
	$(@D)/$(PIP) install --no-compile --no-deps -r $(LOWER_BOUNDS)
	@touch $@

.venv-newest/.requirements: pyproject.toml | .build/dist/.built
	$(SAY) 'Installing the newest versions into $(@D) (some minutes the first time)'
	$(new_environment)
	$(@D)/$(PIP) install --upgrade "$$(ls .build/dist/*.whl)[dev,postgresql,redis]" playwright
	@touch $@

.venv-build/.requirements: $(LOCK)
	$(SAY) 'Installing the build tools into $(@D)'
	$(new_environment)
	$(@D)/$(PIP) install -c $(LOCK) build setuptools
	@touch $@

# --- the wheel --------------------------------------------------------------------------------------------

.build/dist/.built: .venv-build/.requirements $(SOURCES)
	$(SAY) 'Building sdist and wheel'
	.venv-build/bin/python scripts/build_distributions.py $(@D)
	@touch $@

.venv-test/.wheel .venv-demo/.wheel .venv-bench/.wheel .venv-spark/.wheel .venv-fuzz/.wheel \
		.venv-lower-bounds/.wheel .venv-newest/.wheel: \
		%/.wheel: %/.requirements .build/dist/.built
	$(SAY) 'Installing the wheel into $(@D)'
	$(@D)/$(PIP) $(INSTALL_WHEEL)
	@touch $@
