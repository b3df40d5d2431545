# make test-js: folders of layout transformers.js in the hands of Transformers.js itself. Needs Node and npm.

.PHONY: test-js

.dev/js/.installed: tools/transformers_js/package.json
	@command -v npm >/dev/null || { echo "make test-js needs Node 20 or newer with npm" >&2; exit 1; }
	@mkdir -p .dev/js
	cp tools/transformers_js/package.json .dev/js/
	cd .dev/js && npm install --no-audit --no-fund --ignore-scripts
	@touch $@

test-js: setup .dev/js/.installed ## load ONNX folders with Transformers.js under Node (downloads it from npm)
	cp tools/transformers_js/answer.mjs .dev/js/
	$(BIN)/python tools/try_transformers_js.py
