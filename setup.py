"""Builds blockops._C as build_config.py decides; the metadata stands in pyproject.toml."""

import json
import os
import sys
from pathlib import Path

import setuptools

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # pip leaves this folder out
import build_config

try:
    import torch
except ModuleNotFoundError:
    build_config.fail(f"building needs torch in this Python; run `{build_config.INSTALL}`")
build_config.check_setuptools(setuptools.__version__)

ROOT = Path(__file__).resolve().parent


def decide() -> dict:
    """The facts of this build, which build_info() reports later; also sets what torch reads."""
    cuda_home = build_config.find_cuda_home()
    why_no_cuda = build_config.why_no_cuda(
        os.environ.get("BLOCKOPS_CUDA", "auto"), torch.__version__, torch.version.cuda, cuda_home
    )
    architectures = []
    if why_no_cuda is None:
        gpus = range(torch.cuda.device_count())
        architectures = build_config.arch_list(
            os.environ.get("TORCH_CUDA_ARCH_LIST", ""), map(torch.cuda.get_device_capability, gpus)
        )
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(architectures)
        os.environ["CUDA_HOME"] = cuda_home
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    jobs = build_config.max_jobs(cores, build_config.available_memory())
    os.environ.setdefault("MAX_JOBS", str(jobs))
    compiler = build_config.compiler()
    return {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cuda": why_no_cuda is None,
        "why_no_cuda": why_no_cuda,
        "architectures": architectures,
        "compiler": compiler,
        "openmp": build_config.uses_openmp(compiler),
        "sanitize": build_config.sanitizer(),
        "python": sys.version.split()[0],
    }


def extension(facts: dict, build_temp: Path):
    from torch.utils import cpp_extension  # late: it looks for CUDA_HOME when it is imported

    compiling, linking = build_config.cxx_flags(facts["openmp"], facts["sanitize"])
    # torch names its headers' folders with -I; named as the system's too, they give no warnings.
    compiling += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    kind = cpp_extension.CUDAExtension if facts["cuda"] else cpp_extension.CppExtension
    return kind(
        "blockops._C",
        build_config.sources(ROOT, facts["cuda"]),
        include_dirs=[str(ROOT / "csrc"), str(build_temp)],
        extra_compile_args={"cxx": compiling, "nvcc": build_config.nvcc_flags()},
        extra_link_args=linking,
    )


def build_command(facts: dict, build_temp: Path):
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # pip gives each editable install a new folder, and all would be compiled again.
            self.build_temp = str(build_temp)

        def run(self):
            facts["blockops"] = self.distribution.get_version()
            write_header(build_temp / "build_info.h", facts)
            super().run()

        def build_extensions(self):
            named = self.compiler.object_filenames
            self.compiler.object_filenames = lambda sources, *args, **kwargs: (
                build_config.distinct_objects(sources, named(sources, *args, **kwargs))
            )
            super().build_extensions()

    return Build


def write_header(path: Path, facts: dict) -> None:
    # A header, for every compiler quotes a -D differently; left alone when it is up to date, for
    # what includes it would be compiled again.
    text = f'#pragma once\n#define BLOCKOPS_BUILD_INFO R"json({json.dumps(facts)})json"\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main() -> None:
    facts = decide()
    parts = [f"torch{facts['torch']}", "cuda" if facts["cuda"] else "cpu"]
    parts += [sys.implementation.cache_tag, facts["sanitize"] or "plain"]
    build_temp = ROOT / "build" / "-".join(["temp", *parts])
    setuptools.setup(
        ext_modules=[extension(facts, build_temp)],
        cmdclass={"build_ext": build_command(facts, build_temp)},
    )


main()
