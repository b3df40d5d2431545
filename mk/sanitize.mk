# make test-sanitize: the kernels and their tests under the address and undefined-behaviour sanitizers.
#
# kconv is copied to .dev/sanitized with kernels built for that, so that no build meant for use is touched.
# Python itself is not built so; its own leaks are of no interest.

SANITIZED := .dev/sanitized
SANITIZER := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -fno-var-tracking
WITH_ASAN = ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$$($(CC) -print-file-name=libasan.so)

.PHONY: test-sanitize
test-sanitize: setup ## the kernels' tests under the address and undefined-behaviour sanitizers
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r package $(SANITIZED)/kconv
	cp -r $$($(BIN)/python tools/rooms.py) $(SANITIZED)/kconv/ && rm -f $(SANITIZED)/kconv/quant/_kernels.*
	$(CC) -std=gnu11 -O1 -ffp-contract=off -fno-fast-math -fPIC -shared $(SANITIZER) quant/kernels/*.c \
	  -o $(SANITIZED)/kconv/quant/_kernels.so -lm
	PYTHONPATH=$(SANITIZED) $(WITH_ASAN) $(BIN)/python -c 'from kconv.quant import native; assert "sanitized" in native._library()._name'
	PYTHONPATH=$(SANITIZED) $(WITH_ASAN) $(BIN)/python -m pytest -p no:cacheprovider tests/test_kernels*.py \
	  tests/test_native.py::test_widening_is_exact_and_finds_the_largest \
	  tests/test_native.py::test_rows_with_undefined_conversions_go_to_libggml_one_by_one
