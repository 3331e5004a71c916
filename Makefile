# Every target sets up what it needs: Python >= 3.10, a C++ compiler and make are enough to begin.
#
# The Python in use is PYTHON=..., else the active virtual environment's, else .venv's, else python3.
# If it has torch, it is used as it is and only tools that it lacks are added; if not, .venv is made
# from it.

PYTHON ?= $(or $(VIRTUAL_ENV:=/bin/python),$(wildcard .venv/bin/python),python3)

# Two or three words: the interpreter, the ending of its extension modules, and the version of its
# torch, if it has one that is not .venv's.
PROBE := $(shell $(PYTHON) -c 'import os, sys, sysconfig, importlib.metadata as m; \
  assert sys.version_info >= (3, 10); \
  ours = os.path.realpath(sys.prefix) == os.path.realpath(".venv"); \
  print(os.path.abspath(sys.executable), sysconfig.get_config_var("EXT_SUFFIX"), \
        *[d.version for d in m.distributions(name="torch") if not ours])' 2>/dev/null)
ifeq ($(PROBE),)
  $(error blockops needs Python 3.10 or newer, which $(PYTHON) is not: install it, or name one with make PYTHON=...)
endif

VENV := $(CURDIR)/.venv
FOREIGN := $(word 3,$(PROBE))
PY := $(if $(FOREIGN),$(firstword $(PROBE)),$(VENV)/bin/python)
# For what is called by name: ninja, ruff, clang-format.
export PATH := $(dir $(PY)):$(PATH)

# What pip gets of requirements-dev.txt. In .venv the pins, but where a GPU is visible the newest
# CUDA torch; in a Python that came with torch no pins, so that what it has stays.
PINS = $(if $(FOREIGN),s/^\([^;=]*\)==[^;]*/\1/,$(if $(shell nvidia-smi 2>/dev/null),s/^torch==.*/torch/))

FOLDERS := csrc $(wildcard csrc/*/) tests/cpp tests/gpu_check
CXX_FILES := $(wildcard $(foreach f,$(FOLDERS:/=),$(addprefix $(f)/*.,cpp cc h cu cuh)))
CSRC := $(filter csrc/%,$(CXX_FILES))
TOOLS := $(if $(FOREIGN),build/make/tools$(subst /,-,$(PY)),$(VENV)/tools)
KEY := build/make/key
LIBRARY := blockops/_C$(word 2,$(PROBE))
RUN := PYTHONPATH=$(CURDIR) $(PY)

# A Python whose torch has CUDA: $(PY), else that of an environment with the oldest torch that is
# tested.
CUDA_TORCH := 2.11.0
CUDA_VENV := $(CURDIR)/build/cuda-venv
CUDA_PY = $(or $(shell $(PY) -c 'import torch; print("$(PY)" if torch.version.cuda else "")'),\
  $(CUDA_VENV)/bin/python)

.PHONY: help demo tour test cubins cuda-build gpu-check lint format bench sanitize clean FORCE

help:
	@echo "make demo      train a small model on handwritten digits (DEMO_FLAGS=--smoke: briefly)"
	@echo "make tour      walk through layers and blocks, every claim checked"
	@echo "make test      run the tests"
	@echo "make lint      check style and formatting; make format mends the formatting"
	@echo "make cubins    compile the CUDA kernels and list their registers, spills and instructions"
	@echo "make cuda-build  build with CUDA, a GPU is not needed, and test what can be without one"
	@echo "make gpu-check prove the GPU kernels right on this machine's GPU (GPU_CHECK_FLAGS=--out DIR)"
	@echo "make bench     ten minutes of the ops against PyTorch's own (BENCH_FLAGS=--targets: all)"
	@echo "make sanitize  run the marked tests under the undefined-behaviour and address sanitizers"
	@echo "make clean     remove what was built; .venv stays"

demo: $(LIBRARY)
	@$(RUN) examples/digits.py $(DEMO_FLAGS)

tour: $(LIBRARY)
	@$(RUN) examples/tour.py

test: $(LIBRARY)
	@$(RUN) -m pytest tests -q

cubins: $(TOOLS)
	@$(RUN) tests/cubins.py

# A second library in a folder with its own copy of the Python files, from where it is tested.
cuda-build: $(TOOLS)
	@set -e; python=$(CUDA_PY); $(MAKE) -s $$python; \
	export PATH="$${python%/*}:$$PATH" BLOCKOPS_CUDA=1; \
	echo "==> Compiling csrc/ with CUDA for $$python (minutes the first time)"; \
	$$python setup.py -q build --build-lib build/cuda >build/cuda.log 2>&1 \
	  || { cat build/cuda.log; exit 1; }; \
	cd build/cuda; $$python -m blockops; \
	$$python -m pytest -q $(addprefix $(CURDIR)/tests/test_,cuda_build.py dispatch.py contract.py \
	  autograd_node.py triton_kernels.py triton_tuning.py) \
	  -k "test_cuda_build or test_dispatch or (native_cpu and center) or test_autograd_node \
	  or test_compiled or test_triton_tuning"

$(CUDA_VENV)/bin/python:
	@$(PY) -c 'import build_config as b; b.find_cuda_home() or b.fail("there is no CUDA toolkit")'
	@echo "==> Installing torch $(CUDA_TORCH) with CUDA into build/cuda-venv (5 GB)"
	@$(PY) -m venv $(CUDA_VENV)
	@{ echo "torch==$(CUDA_TORCH)"; echo "setuptools>=77,<82"; \
	  grep -E '^(ninja|pytest|numpy)=' requirements-dev.txt; } | \
	  $@ -m pip install -qq --disable-pip-version-check -r /dev/stdin \
	  || { rm -rf $(CUDA_VENV); exit 1; }

# Installs nothing where torch is there already, for GPUs are also on machines without a network.
gpu-check: $(if $(FOREIGN),,$(TOOLS))
	@PYTHONPATH="$(CURDIR)/tests:$$PYTHONPATH" $(PY) -m gpu_check $(GPU_CHECK_FLAGS)

bench: $(LIBRARY)
	@$(RUN) -m bench $(or $(BENCH_FLAGS),--minutes 9 --skip-compile)

lint: $(TOOLS)
	@ruff check .
	@ruff format --check .
	@clang-format --dry-run -Werror $(CXX_FILES)

format: $(TOOLS)
	@ruff check --fix .
	@ruff format .
	@clang-format -i $(CXX_FILES)

sanitize: sanitize-undefined sanitize-address

# The address sanitizer must be in the process before Python is; Python itself is full of leaks.
sanitize-address: PRELOAD = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) \
  $$($${CXX:-c++} -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0

# A second library in a folder with its own copy of the Python files, from where the tests are run.
sanitize-%: $(TOOLS)
	@echo "==> Running the tests marked sanitize with the $* sanitizer"
	@mkdir -p build
	@BLOCKOPS_CUDA=0 BLOCKOPS_SANITIZE=$* $(PY) setup.py -q build --build-lib build/sanitize-$* \
	  >build/sanitize-$*.log 2>&1 || { cat build/sanitize-$*.log; exit 1; }
	@cd build/sanitize-$* && \
	  env $(PRELOAD) BLOCKOPS_SANITIZE=$* $(PY) -m pytest $(CURDIR)/tests -m sanitize -q

clean:
	@rm -rf build dist *.egg-info blockops/_C*.so .pytest_cache .ruff_cache

$(LIBRARY): $(TOOLS) $(KEY) $(CSRC) setup.py build_config.py pyproject.toml
	@echo "==> Compiling csrc/ (a minute or two the first time, then only what changed)"
	@$(PY) setup.py -q build_ext --inplace >build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@grep -A3 '^$(CURDIR)/csrc.*warning:' build/build.log || true
	@touch -c $@

# What decides over a rebuild beside the files' dates; rewritten only when it changes.
$(KEY): FORCE
	@mkdir -p $(@D)
	@echo '$(PY) $(FOREIGN) $(BLOCKOPS_CUDA) $(TORCH_CUDA_ARCH_LIST) $(CXX) $(CSRC)' >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# The compiler is asked for before the long download, not after it.
$(TOOLS): requirements-dev.txt
	@$(firstword $(PROBE)) -c 'import build_config; build_config.compiler()'
	@test -x $(PY) || { echo "==> Making .venv from $(firstword $(PROBE))"; \
	  $(firstword $(PROBE)) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "==> Installing what requirements-dev.txt names for $(PY) (minutes the first time)"
	@sed '$(PINS)' requirements-dev.txt | \
	  $(PY) -m pip install -qq --disable-pip-version-check -r /dev/stdin
	@mkdir -p $(@D) && touch $@
