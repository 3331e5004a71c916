"""The build's decisions, and what blockops says when its library is missing or another's."""

import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import blockops
from blockops import _info, _library

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(blockops.__file__).parent


@pytest.fixture
def config():
    spec = importlib.util.spec_from_file_location("build_config", ROOT / "build_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_toolkit(home: Path) -> Path:
    """A folder that passes for a CUDA toolkit."""
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    return home


def make_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# what make installs


def test_pins_go_where_torch_is_there_already():
    """make tests itself in .venv; here it is told that it runs in a Python that came with torch."""
    command = ["make", "-s", "FOREIGN=yes", "--eval", "named:; @sed '$(PINS)' requirements-dev.txt"]
    named = subprocess.run([*command, "named"], cwd=ROOT, capture_output=True, text=True)
    assert named.returncode == 0, named.stderr
    lines = (ROOT / "requirements-dev.txt").read_text(), named.stdout
    pinned, free = (
        [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
        for text in lines
    )
    assert [(r.name, r.marker) for r in free] == [(r.name, r.marker) for r in pinned]
    assert any("==" in str(r.specifier) for r in pinned)
    assert not any("==" in str(r.specifier) for r in free)


# CUDA or not


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "cuda_home", "reason"),
    [
        ("auto", None, None, "torch 2.13.0 has no CUDA in it"),
        ("auto", None, "/cuda", "torch 2.13.0 has no CUDA in it"),
        ("auto", "13.0", "/cuda", None),
        ("1", "13.0", "/cuda", None),
        ("0", None, None, "it was built with BLOCKOPS_CUDA=0"),
        ("0", "13.0", None, "it was built with BLOCKOPS_CUDA=0"),
        ("0", "13.0", "/cuda", "it was built with BLOCKOPS_CUDA=0"),
    ],
)
def test_cuda_decision(config, mode, torch_cuda, cuda_home, reason):
    assert config.why_no_cuda(mode, "2.13.0", torch_cuda, cuda_home) == reason


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "cuda_home", "message"),
    [
        ("auto", "13.0", None, "set CUDA_HOME, or set BLOCKOPS_CUDA=0"),
        ("1", "13.0", None, "set CUDA_HOME, or set BLOCKOPS_CUDA=0"),
        ("1", None, "/cuda", "BLOCKOPS_CUDA=1, but torch 2.13.0 has no CUDA in it"),
        ("yes", "13.0", "/cuda", "BLOCKOPS_CUDA must be auto, 0 or 1, got 'yes'"),
    ],
)
def test_cuda_impossible_stops_the_build(config, mode, torch_cuda, cuda_home, message):
    with pytest.raises(SystemExit, match=message):
        config.why_no_cuda(mode, "2.13.0", torch_cuda, cuda_home)


# Finding the toolkit


def test_toolkit_order(config, tmp_path, monkeypatch):
    named, asked, linked, default = (make_toolkit(tmp_path / n) for n in "abcd")
    wrapper = make_script(tmp_path / "path/nvcc", f"echo '#$ TOP={asked}/bin/..' >&2")
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(named))
    assert config.find_cuda_home(str(default)) == str(named)

    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert config.find_cuda_home(str(default)) == str(asked)

    monkeypatch.delenv("CUDA_HOME")
    wrapper.unlink()
    make_script(linked / "bin/nvcc", "exit 1")
    wrapper.symlink_to(linked / "bin/nvcc")
    assert config.find_cuda_home(str(default)) == str(linked)

    wrapper.unlink()
    assert config.find_cuda_home(str(default)) == str(default)


def test_toolkit_without_headers_does_not_count(config, tmp_path, monkeypatch):
    home = make_toolkit(tmp_path / "cuda")
    (home / "include/cuda_runtime.h").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert config.find_cuda_home(str(tmp_path / "nowhere")) is None


# Architectures, jobs, sources, flags


@pytest.mark.parametrize(
    ("requested", "capabilities", "expected"),
    [
        ("", [], ["8.0", "9.0a"]),
        ("", [(9, 0), (8, 6), (9, 0)], ["8.6", "9.0a"]),
        ("", [(12, 0)], ["12.0"]),
        ("8.0 9.0a+PTX", [(8, 6)], ["8.0", "9.0a+PTX"]),
        ("8.0;9.0", [], ["8.0", "9.0"]),
    ],
)
def test_arch_list(config, requested, capabilities, expected):
    assert config.arch_list(requested, capabilities) == expected


@pytest.mark.parametrize(
    ("cores", "gib", "jobs"), [(16, 128, 16), (16, 10, 4), (2, 1, 1), (4, None, 4)]
)
def test_max_jobs(config, cores, gib, jobs):
    assert config.max_jobs(cores, gib and gib * config.GIB) == jobs


def test_sources(config, tmp_path):
    names = ("module.cpp", "op/op.cpp", "op/op_cpu.cpp", "op/op_cuda.cpp", "op/op.cu", "op/op.cuh")
    for name in names:
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cpu = ["csrc/module.cpp", "csrc/op/op.cpp", "csrc/op/op_cpu.cpp"]
    assert config.sources(tmp_path, cuda=False) == cpu
    cuda = config.sources(tmp_path, cuda=True)
    assert sorted(cuda) == sorted([*cpu, "csrc/op/op_cuda.cpp", "csrc/op/op.cu"])


def test_sources_of_one_stem_have_objects_of_their_own(config):
    objects = config.distinct_objects(["op/op.cpp", "op/op.cu"], ["t/op/op.o", "t/op/op.o"])
    assert objects == ["t/op/op.o", "t/op/op.cu.o"]


def test_flags_leave_to_torch_what_torch_decides(config):
    flags = [*config.nvcc_flags(), *config.cxx_flags(True, None)[0]]
    assert not any(flag.startswith("-std") or "arch" in flag for flag in flags)


def test_openmp_is_compiled_but_never_linked(config):
    compiling, linking = config.cxx_flags(openmp=True, sanitize=None)
    assert "-fopenmp" in compiling and linking == []


def test_missing_compiler_stops_the_build(config, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler .*apt-get install g\\+\\+"):
        config.compiler()


def test_old_setuptools_stops_the_build(config):
    with pytest.raises(SystemExit, match="needs setuptools 77 or newer, this is 65.5.0; run `pip"):
        config.check_setuptools("65.5.0")
    config.check_setuptools("77.0.1.post1")
    assert f'"setuptools>={config.SETUPTOOLS}"' in (ROOT / "pyproject.toml").read_text()


# The real setup.py


def run_python(*args, path=()) -> subprocess.CompletedProcess:
    """Python run in the repository, with `path` and this blockops before all else on its path."""
    path = os.pathsep.join(map(str, [*path, PACKAGE.parent]))
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_build_without_torch_names_the_line(config, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    done = run_python("setup.py", "--version", path=[tmp_path])
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "blockops: building needs torch in this Python; run `pip install torch ninja "
        "'setuptools>=77' && pip install --no-build-isolation .`"
    )


def test_sdist_holds_every_source(tmp_path):
    done = run_python("setup.py", "-q", "egg_info", f"-e{tmp_path}", "sdist", f"-d{tmp_path}")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    held = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    csrc = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert csrc | {"setup.py", "build_config.py", "LICENSE"} <= held


# The library that came of it


@pytest.mark.sanitize
def test_library_is_the_one_that_was_asked_for():
    _library.require()
    facts = _library.build_info()
    assert facts["torch"] == torch.__version__
    assert facts["sanitize"] == (os.environ.get("BLOCKOPS_SANITIZE") or None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_library_brings_no_second_openmp():
    _library.require()
    done = run_python("-c", "import blockops; print(open('/proc/self/maps').read())")
    assert len({word for word in done.stdout.split() if "libgomp" in word}) == 1


def reload_library(monkeypatch, package: Path, load) -> str:
    """why_missing of a fresh _library in `package`, whose `import blockops._C` is `load`."""
    monkeypatch.setattr(importlib, "import_module", load)
    text = (PACKAGE / "_library.py").read_text()
    namespace = {"__file__": str(package / "_library.py"), "__name__": "fresh"}
    exec(compile(text, "_library.py", "exec"), namespace)
    with pytest.raises(RuntimeError) as caught:
        namespace["require"]()
    assert namespace["build_info"]() == {} and namespace["path"]() is None
    assert str(caught.value) == namespace["why_missing"]
    return namespace["why_missing"]


def raise_(error):
    def load(name):
        raise error

    return load


def test_library_missing(monkeypatch, tmp_path):
    absent = raise_(ModuleNotFoundError("No module named 'blockops._C'"))
    installed = tmp_path / "site/blockops"
    installed.mkdir(parents=True)
    why = reload_library(monkeypatch, installed, absent)
    assert "installed without its compiled library" in why and "pip install" in why

    (tmp_path / "site/setup.py").touch()
    why = reload_library(monkeypatch, installed, absent)
    assert "source tree" in why and "python setup.py build_ext --inplace" in why

    (installed / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    why = reload_library(monkeypatch, installed, absent)
    assert "another Python" in why and "cpython-27" in why


def test_library_of_another_torch(monkeypatch, tmp_path):
    class Stale:
        build_info = staticmethod(lambda: {"torch": "1.0.0"})

    why = reload_library(monkeypatch, tmp_path, lambda name: Stale)
    assert f"was built for torch 1.0.0, but this is torch {torch.__version__}" in why
    why = reload_library(monkeypatch, tmp_path, raise_(ImportError("undefined symbol: _ZN3c10")))
    assert "undefined symbol: _ZN3c10" in why and "another version" in why


def test_import_without_torch_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    done = run_python("-c", "import blockops", path=[tmp_path])
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: blockops needs PyTorch") and "pip install torch" in last


# info()


def test_info():
    facts = blockops.info()
    parts = ["versions", "library", "memory", "devices", "default_backend", "backends"]
    assert list(facts) == parts
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["library"]["torch"] == torch.__version__
    assert "cpu" in facts["devices"]
    for by_device in facts["backends"].values():
        assert by_device["cpu"]["reference"] is None


def test_info_as_text():
    facts = blockops.info()
    facts["memory"] = {"kept": 3 << 20, "limit": 1 << 30}
    assert (
        "  kept for large results  3 MiB of at most 1024 MiB" in _info.as_text(facts).splitlines()
    )
    facts["library"], facts["memory"] = {"missing": "it is not built"}, {}
    facts["backends"] = {"quadratic": {"cpu": {"native": "it is not built", "reference": None}}}
    lines = _info.as_text(facts).splitlines()
    assert any(line.split() == ["missing", "it", "is", "not", "built"] for line in lines)
    assert any(line.endswith("reference; not native: it is not built") for line in lines)
    assert "memory" not in lines


@pytest.mark.parametrize(
    ("why_no_cuda", "devices", "sentence"),
    [
        ("torch 2.13.0 has no CUDA in it", [], "no kernels: torch 2.13.0 has no CUDA in it"),
        (None, [], "kernels for 8.0 9.0a; no CUDA device is visible"),
        (None, ["cuda:0"], "kernels for 8.0 9.0a"),
    ],
)
def test_info_says_whether_cuda_can_run(why_no_cuda, devices, sentence):
    facts = blockops.info()
    facts["library"] |= {"why_no_cuda": why_no_cuda, "architectures": ["8.0", "9.0a"]}
    facts["devices"] = dict.fromkeys(["cpu", *devices], "some device")
    lines = [line.split(maxsplit=1) for line in _info.as_text(facts).splitlines()]
    assert ["cuda", sentence] in lines


def test_command_prints_info():
    done = run_python("-m", "blockops")
    for heading in ("versions", "compiled library", "devices", "backends"):
        assert heading in done.stdout.splitlines()
    assert torch.__version__ in done.stdout
