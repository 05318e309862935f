# make demo: speaker identification on the bundled audio at three rates, through S3PRL; ends with a table and a picture
# make test: lint, formatting, types, all tests but the slow ones; make test-slow: the slow ones
# python -m tests.hostile: thousands of damaged and hostile checkpoints, half an hour; make test-slow has a few hundred
# make docs: the documentation, into site/
# All of them make or repair .venv first; only Python 3.11 to 3.13 with venv and pip is needed.

CKPT ?= tiny
LAMBDS ?= 0 0.5 1
PYTHON_IN_VENV := .venv/bin/python
# Tests run in two processes of one thread each: more threads would only compete for the cores.
TEST_PROCESSES ?= 2
# Options of pytest. Continuous integration measures coverage; it makes the tests a third slower.
COVERAGE ?=

.PHONY: demo test test-slow docs venv clean

demo:
	@.ci/venv demo,sweep
	@$(PYTHON_IN_VENV) -m s3prl_ofa.demo --ckpt "$(CKPT)" --lambds $(LAMBDS)

test:
	@.ci/venv test
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m mypy
	@OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -n $(TEST_PROCESSES) -m "not slow" $(COVERAGE)

test-slow:
	@.ci/venv test
	@OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -n $(TEST_PROCESSES) -m slow

docs:
	@.ci/venv docs
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --strict --quiet

venv:
	@.ci/venv test

clean:
	rm -rf .venv build dist demo site *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache .nox artifacts
