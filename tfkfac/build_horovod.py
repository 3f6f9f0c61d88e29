"""Builds Horovod 0.28.1 against the installed TensorFlow and installs it.

    python -m tfkfac.build_horovod [--force]

About 2 minutes on 2 cores; the wheel is cached, so that a second environment
with the same Python and TensorFlow takes seconds. g++ and make come with the
system; what else the build needs comes with `pip install 'tfkfac[horovod]'`.

Horovod publishes no wheels, and its source distribution does not compile
against the wheels of TensorFlow 2.21: `xla_mpi_ops.cc` includes XLA headers
that they do not ship. That file (collectives under `jit_compile=True`) is left
out. With Gloo, Horovod's check for stalled ranks never fires, as it goes by a
list of ranks that was reserved and never given its size: that is mended, so
that HOROVOD_STALL_SHUTDOWN_TIME_SECONDS ends a run whose ranks wait for each
other. Nothing else is changed.

Environment variables, read by Horovod's own build and part of the cache key:

    HOROVOD_GPU_OPERATIONS=NCCL   collectives on GPUs; HOROVOD_NCCL_HOME and
                                  HOROVOD_CUDA_HOME say where those libraries
                                  are. Default: CPU only.
    HOROVOD_WITH_MPI=1            MPI beside Gloo, for `mpirun` clusters.
                                  Default: Gloo only (HOROVOD_WITHOUT_MPI=1).
    MAKEFLAGS=-jN                 parallel compilation. Default: one job a core.
    TFKFAC_CACHE_DIR              where wheels are kept. Default:
                                  ~/.cache/tfkfac
"""

import argparse
import glob
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata

VERSION = "0.28.1"
# (file, text, what takes its place).
CHANGES = (
    (
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/'
        'xla_mpi_ops.cc")',
        "",
    ),
    (
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_)",
        "global_ranks_.resize(size_)",
    ),
    (
        "horovod/__init__.py",
        f"__version__ = '{VERSION}'",
        f"__version__ = '{VERSION}'\ngloo_stall_check = True",
    ),
)


def _tensorflow_version() -> str:
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise SystemExit(
        "TensorFlow is not installed in this environment; install it first "
        "(Horovod must be built against the TensorFlow it runs with)."
    )


def _works() -> bool:
    """Whether the installed Horovod loads with the installed TensorFlow."""
    program = (
        "import horovod, horovod.tensorflow as hvd; hvd.init(); "
        f"assert horovod.__version__ == '{VERSION}' and hvd.gloo_built() "
        "and horovod.gloo_stall_check"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    return run.returncode == 0


def _build_environment() -> dict[str, str]:
    env = dict(os.environ)
    env.setdefault("MAKEFLAGS", f"-j{os.cpu_count()}")
    env.update(
        HOROVOD_WITH_TENSORFLOW="1",
        HOROVOD_WITHOUT_PYTORCH="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_WITH_GLOO="1",
    )
    if env.get("HOROVOD_WITH_MPI") != "1":
        env["HOROVOD_WITHOUT_MPI"] = "1"
    # Scripts of this environment first: `cmake` comes from PyPI.
    env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env["PATH"]
    return env


def _require_tools(env: dict[str, str]) -> None:
    mends = {
        "g++": "install it with your system's package manager "
        "(Debian and Ubuntu: apt-get install g++)",
        "make": "install it with your system's package manager "
        "(Debian and Ubuntu: apt-get install make)",
        "cmake": f"{sys.executable} -m pip install 'cmake<4'",
    }
    missing = [t for t in mends if shutil.which(t, path=env["PATH"]) is None]
    if missing:
        raise SystemExit(
            "Horovod is compiled from source, and this is missing:\n"
            + "\n".join(f"  {tool}: {mends[tool]}" for tool in missing)
        )


def _cache_dir(env: dict[str, str]) -> str:
    variables = sorted(
        (k, v) for k, v in env.items() if k.startswith("HOROVOD_")
    )
    key = hashlib.sha256(repr((variables, CHANGES)).encode()).hexdigest()[:8]
    root = os.environ.get("TFKFAC_CACHE_DIR") or os.path.join(
        os.path.expanduser("~"), ".cache", "tfkfac"
    )
    return os.path.join(
        root,
        f"horovod-{VERSION}-tensorflow-{_tensorflow_version()}"
        f"-python-{platform.python_version()}-{key}",
    )


def _pip(*arguments: str, env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        subprocess.run(command, env=env, check=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            f"Failed: {' '.join(command)}\n"
            "The compiler's own message stands above."
        ) from None


def _build_wheel(cache_dir: str, env: dict[str, str]) -> None:
    """Leaves a wheel in `cache_dir`, or nothing there at all."""
    with tempfile.TemporaryDirectory() as work:
        source = ("--no-deps", "--no-build-isolation")
        _pip("download", "--quiet", "--no-binary", ":all:", *source,
             "--dest", work, f"horovod=={VERSION}", env=env)  # fmt: skip
        (archive,) = glob.glob(os.path.join(work, "horovod-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        tree = os.path.join(work, f"horovod-{VERSION}")
        for name, text, replacement in CHANGES:
            path = pathlib.Path(tree, name)
            before = path.read_text()
            if text not in before:
                raise SystemExit(f"Horovod's {name} has no {text!r} to change.")
            path.write_text(before.replace(text, replacement))
        wheels = os.path.join(work, "wheels")
        _pip("wheel", *source, "--wheel-dir", wheels, tree, env=env)
        (wheel,) = glob.glob(os.path.join(wheels, "*.whl"))
        os.makedirs(cache_dir, exist_ok=True)
        target = os.path.join(cache_dir, os.path.basename(wheel))
        shutil.copyfile(wheel, target + ".partial")
        os.replace(target + ".partial", target)


def main(arguments: list[str] | None = None) -> None:
    """Builds and installs Horovod, unless it is installed and works."""
    heading = "Environment variables, "
    about, _, variables = (__doc__ or "").partition(heading)
    parser = argparse.ArgumentParser(
        "python -m tfkfac.build_horovod",
        description=about.partition("\n")[0],
        epilog=heading + variables,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--force", action="store_true", help="Build again, cached wheel or not."
    )
    force = parser.parse_args(arguments).force
    if not force and _works():
        print(f"Horovod {VERSION} is installed and works.")
        return
    env = _build_environment()
    cache_dir = _cache_dir(env)
    if force or not glob.glob(os.path.join(cache_dir, "*.whl")):
        _require_tools(env)
        print("Building Horovod (about 2 minutes on 2 cores) ...", flush=True)
        _build_wheel(cache_dir, env)
    (wheel,) = glob.glob(os.path.join(cache_dir, "*.whl"))
    _pip("install", "--quiet", "--no-deps", "--force-reinstall", wheel, env=env)
    if not _works():
        raise SystemExit(
            f"Horovod was built from {wheel} but does not load; remove that "
            "file and run this again with --force, and read the compiler's "
            "output."
        )
    print(f"Horovod {VERSION} is installed and works.")


if __name__ == "__main__":
    main()
