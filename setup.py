"""Packaging of geodiff_jax, and the build of its kernels.

`pip install .` and `pip install -e .` compile `kernels/` when they find a compiler;
`python setup.py build_kernels --inplace` does only that. Every instruction set gets
a shared library of its own, complete in itself, so that no inline function compiled
for a newer processor can be linked into the code for an older one. Where nvcc is
found, the CUDA kernels are compiled too, for the GPUs that are here; without one, for
Hopper, and as PTX, which drivers compile at the first use, for all since Ampere.
`GEODIFF_JAX_CUDA_ARCHITECTURES="80 90 100"` asks for others.
"""

import concurrent.futures
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys

import setuptools
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent
PACKAGE_FOLDER = pathlib.Path("geodiff_jax", "render")
HEADERS = "_kernels.headers"
FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math "
    # Vector types lose may_alias as template arguments; nothing here aliases.
    "-Wno-ignored-attributes"
)
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler=-fPIC,-fvisibility=hidden"
ISAS = {"baseline": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS |= {"avx2": "-mavx2 -mfma", "avx512": f"-mavx2 -mfma {AVX512}"}


class BuildKernels(setuptools.Command):
    """Compiles kernels/ into one shared library per instruction set."""

    description = "compile the C++ (and, with nvcc, CUDA) kernels"
    user_options = [("inplace", "i", "put the libraries beside the sources")]
    boolean_options = ["inplace"]

    def initialize_options(self):
        """Sets the defaults."""
        self.inplace = False
        self.build_lib = None

    def finalize_options(self):
        """Finds where the libraries go."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        """Builds what the machine's compilers can build; warns once otherwise."""
        target = (ROOT if self.inplace else pathlib.Path(self.build_lib)).resolve()
        target /= PACKAGE_FOLDER
        if _up_to_date(target):
            return
        try:
            build_kernels(target, ROOT / "build" / "kernels")
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            _warn(f"kernels ({error})", "a C++ compiler")
            return
        try:
            build_cuda(target, ROOT / "build" / "kernels")
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            _warn(f"CUDA kernels ({error}), which matters on GPUs only", "nvcc")
            (target / "_kernels_cuda.so").unlink(missing_ok=True)
        (target / HEADERS).write_text(_headers())


def _up_to_date(target: pathlib.Path) -> bool:
    """Whether all libraries are there, none older than its sources, for this jax.

    Older versions of jax refuse kernels that were built with a newer one's headers.
    """
    if "GEODIFF_JAX_CUDA_ARCHITECTURES" in os.environ:
        return False
    names = [*ISAS, "cuda"] if shutil.which("nvcc") else list(ISAS)
    libraries = [target / f"_kernels_{name}.so" for name in names]
    try:
        made = min(library.stat().st_mtime for library in libraries)
        if (target / HEADERS).read_text() != _headers():
            return False
    except (ImportError, OSError):
        return False
    sources = [pathlib.Path(__file__), *(ROOT / "kernels").glob("*.[hc]*")]
    return all(source.stat().st_mtime < made for source in sources)


def _headers() -> str:
    """Which jax the kernels are compiled for."""
    import jax

    return f"{jax.__version__} {jax.ffi.include_dir()}"


def _warn(missing: str, compiler: str) -> None:
    print(
        f"WARNING: geodiff_jax is installed without {missing}: the slow jnp references "
        f"will run; install {compiler}, then run `python setup.py build_kernels "
        "--inplace`.",
        file=sys.stderr,
    )


def build_kernels(target: pathlib.Path, work: pathlib.Path) -> None:
    """Compiles the CPU kernels into `target`, object files into `work`."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        next(filter(shutil.which, ("g++", "clang++", "c++")), "")
    ]
    if not shutil.which(compiler[0]):
        raise RuntimeError("no C++ compiler found")
    try:
        import jax
    except ImportError as error:
        raise RuntimeError("jax, which carries the FFI headers, is missing") from error
    common = [*compiler, *FLAGS.split(), "-isystem", jax.ffi.include_dir()]
    target.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "kernels").glob("*.cc"))

    def compile_object(isa: str, source: pathlib.Path) -> pathlib.Path:
        output = work / f"{source.stem}_{isa}.o"
        flags = [*ISAS[isa].split(), "-c", str(source), "-o", str(output)]
        subprocess.run([*common, *flags], check=True)
        return output

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {
            isa: [pool.submit(compile_object, isa, source) for source in sources]
            for isa in ISAS
        }
        for isa, futures in objects.items():
            link = [*compiler, "-shared", *(str(f.result()) for f in futures)]
            _link([*link, "-lpthread"], target / f"_kernels_{isa}.so")


def build_cuda(target: pathlib.Path, work: pathlib.Path) -> None:
    """Compiles the CUDA kernels into one library in `target`."""
    if not shutil.which("nvcc"):
        raise RuntimeError("no nvcc found")
    import jax

    flags = [*NVCC_FLAGS.split(), *_code_flags(), f"-isystem={jax.ffi.include_dir()}"]

    def compile_object(source: pathlib.Path) -> str:
        output = str(work / f"{source.stem}.o")
        subprocess.run(["nvcc", *flags, "-c", str(source), "-o", output], check=True)
        return output

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = sorted((ROOT / "kernels").glob("*.cu"))
        objects = list(pool.map(compile_object, sources))
    # nvcc's own runtime: it finds the driver by itself, or stays silent without one.
    link = ["nvcc", "-shared", "-cudart=static", *objects]
    _link(link, target / "_kernels_cuda.so")


def _code_flags() -> list[str]:
    """What nvcc generates code for."""
    wanted = os.environ.get("GEODIFF_JAX_CUDA_ARCHITECTURES", "").split()
    if not wanted and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            wanted = sorted({x.replace(".", "") for x in found.stdout.split()})
    if wanted:
        return [f"-gencode=arch=compute_{x},code=sm_{x}" for x in wanted]
    return [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_80,code=compute_80",
    ]


def _link(command: list[str], library: pathlib.Path) -> None:
    """Links next to the library, then renames: a running process keeps the old file."""
    partial = library.with_suffix(f".{os.getpid()}.partial")
    subprocess.run([*command, "-o", str(partial)], check=True)
    partial.replace(library)


class BuildPy(build_py):
    """The usual build, then the kernels."""

    def run(self):
        """Builds."""
        super().run()
        command = self.get_finalized_command("build_kernels")
        command.inplace = self.editable_mode
        command.run()


setuptools.setup(
    name="geodiff_jax",
    version="0.1.0",
    description="One portrait in, an animatable 4D Gaussian head avatar out, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["geodiff_jax*"]),
    package_data={"geodiff_jax": ["**/*.npz"]},
    install_requires=[
        "jax>=0.10,<0.12",
        "flax",
        "optax",
        "orbax-checkpoint",
        "diffrax",
        "jaxlie",
        "numpy",
        "scipy",
        "tensorflow-datasets",
        "importlib_resources",  # tensorflow-datasets needs it, undeclared.
        "protobuf",
        "array_record",
        "grain",
        "absl-py",
        "ml_collections",
        "safetensors",
        "pillow",
        "av",
        "scikit-image",
        "plyfile",
        "tensorboardX",
        "rich",
        "jaxtyping",
    ],
    extras_require={
        "portrait": [
            "mediapipe==0.10.14",
            "tensorflow-metadata==1.16.1",
            "importlib_resources",
        ],
        # Datasets in HDF5, and networks that estimate normals or mattes for others.
        "datasets": ["h5py", "onnxruntime"],
        "cuda13": ["jax[cuda13]>=0.10,<0.12"],
        # For parity tests only: the library itself never needs torch.
        "parity": ["torch==2.13.0", "diffusers==0.42.1", "transformers"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "pyright", "beartype"],
    },
    cmdclass={"build_kernels": BuildKernels, "build_py": BuildPy},
)
