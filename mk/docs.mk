# The documentation as a site: docs/en and docs/ko in build/site, without a network.
DOCS_STAMP := $(VENV)/.docs-installed
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

.PHONY: docs docs-serve
docs: $(DOCS_STAMP) ## the documentation as a site in build/site, both languages; a broken link fails
	rm -rf build/site
	$(MKDOCS) build --strict --config-file docs/site/mkdocs.yml
	$(MKDOCS) build --strict --config-file docs/site/mkdocs.ko.yml
	@echo "build/site/index.html and build/site/ko/index.html; make docs-serve for the search, too"

docs-serve: docs ## the same at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

$(DOCS_STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $$($(BIN)/python tools/requirements_of.py docs)
	@touch $@
