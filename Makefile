# Thin on purpose: what the targets do is written in noxfile.py; tools/start.py installs nox.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo test check drill bench soak format clean

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## An application in trouble, watched by a real Prometheus and Alertmanager (DEMO_SECONDS=30 ends it).
	@exec $(PYTHON) tools/start.py run demo examples/demo/run.py

test: ## Lint, types and all tests, on every supported Python: what CI runs.
	@exec $(PYTHON) tools/start.py test $(ARGS)

check: ## The fast loop: lint, types and fast tests of the working tree, on one Python.
	@exec $(PYTHON) tools/start.py check $(ARGS)

drill: ## Faults for real, and the alerts that reach a webhook, as a table.
	@exec $(PYTHON) tools/start.py run drill tests/drills/drill.py $(ARGS)

bench: ## What telemetry costs, as ratios measured in one run; a quarter of an hour.
	@exec $(PYTHON) tools/start.py run bench benchmarks/all.py $(ARGS)

soak: ## What stays in memory after a million runs and 200,000 jobs, as curves; about five minutes.
	@exec $(PYTHON) tools/start.py run bench benchmarks/soak.py $(ARGS)

format: ## Format the code, and fix what can be fixed by itself.
	@exec $(PYTHON) tools/start.py format

clean: ## Remove all that the other targets made in this directory.
	@rm -rf .envs .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
