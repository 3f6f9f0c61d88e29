"""The command that builds Horovod: what it asks for, and when it does nothing.

The build itself is part of the set-up, and takes minutes.
"""

import pytest

from tfkfac import build_horovod


def test_missing_compilers_are_named_with_the_mend(tmp_path):
    with pytest.raises(SystemExit) as raised:
        build_horovod._require_tools({"PATH": str(tmp_path)})
    for word in ("g++", "make", "cmake", "apt-get install g++", "'cmake<4'"):
        assert word in str(raised.value)


@pytest.mark.parametrize("name", ["g++", "make"])
def test_compilers_that_are_there_are_not_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("")
    path.chmod(0o755)
    with pytest.raises(SystemExit) as raised:
        build_horovod._require_tools({"PATH": str(tmp_path)})
    assert f"  {name}:" not in str(raised.value)
    assert "  cmake:" in str(raised.value)


def test_a_horovod_that_works_is_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(build_horovod, "_works", lambda: True)
    monkeypatch.setattr(build_horovod, "_pip", None)
    build_horovod.main([])
    assert capsys.readouterr().out == (
        "Horovod 0.28.1 is installed and works.\n"
    )


def test_a_kept_wheel_is_installed_and_not_built(monkeypatch, tmp_path):
    works, pip = iter([False, True]), []
    monkeypatch.setenv("TFKFAC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build_horovod, "_works", lambda: next(works))
    monkeypatch.setattr(
        build_horovod, "_pip", lambda *arguments, env: pip.append(arguments)
    )
    monkeypatch.setattr(build_horovod, "_build_wheel", None)
    kept = tmp_path / build_horovod._cache_dir(
        build_horovod._build_environment()
    )
    kept.mkdir(parents=True)
    wheel = kept / "horovod-0.28.1-cp311.whl"
    wheel.write_text("")
    build_horovod.main([])
    ((command, *_, installed),) = pip
    assert (command, installed) == ("install", str(wheel))


def test_variables_of_the_build_are_part_of_the_key(monkeypatch):
    def key(**given):
        return build_horovod._cache_dir({"PATH": "", **given})

    plain = key()
    assert key(MAKEFLAGS="-j9") == plain
    assert key(HOROVOD_GPU_OPERATIONS="NCCL") != plain
    assert key(HOROVOD_WITH_MPI="1") != plain


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        build_horovod.main(["--forced"])
    assert "unrecognized arguments: --forced" in capsys.readouterr().err


def test_help_lists_the_environment_variables(capsys):
    with pytest.raises(SystemExit):
        build_horovod.main(["--help"])
    said = capsys.readouterr().out
    assert said.count("Builds Horovod 0.28.1") == 1
    for name in (
        "HOROVOD_GPU_OPERATIONS=NCCL",
        "HOROVOD_NCCL_HOME",
        "HOROVOD_CUDA_HOME",
        "HOROVOD_WITH_MPI=1",
        "MAKEFLAGS=-jN",
        "TFKFAC_CACHE_DIR",
    ):
        assert name in said
