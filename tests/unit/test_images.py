import os
import re
from pathlib import Path

import pytest

from images import build, native, recipes
from images.recipes import BY_NAME, ROOT, BuildError, Layer, source_files


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one image of two layers."""
    (tmp_path / "code/deep").mkdir(parents=True)
    (tmp_path / "code/main.py").write_text("print(1)\n")
    (tmp_path / "lock.txt").write_text("a==1\n")
    layers = {
        "deps": Layer("deps", None, lambda tree: None, inputs=("lock.txt",)),
        "app": Layer("app", "deps", lambda tree: None, inputs=("code", "not-there-yet")),
    }
    for module in (build, recipes):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "BY_NAME", layers)
    return tmp_path


def tags(repository: Path) -> tuple[str, str]:
    return build.tag(build.BY_NAME["deps"]), build.tag(build.BY_NAME["app"])


@pytest.mark.parametrize("path", ["code/main.py", "code/deep/new.py", "not-there-yet"])
def test_changed_code_changes_the_tag_of_its_layer_only(repository, path):
    deps, app = tags(repository)
    (repository / path).write_text("print(2)\n")
    assert tags(repository)[0] == deps
    assert tags(repository)[1] != app


def test_a_changed_lock_changes_every_layer_above_it(repository):
    deps, app = tags(repository)
    (repository / "lock.txt").write_text("a==2\n")
    assert tags(repository)[0] != deps
    assert tags(repository)[1] != app


def test_a_moved_file_changes_the_tag(repository):
    before = tags(repository)
    (repository / "code/main.py").rename(repository / "code/deep/main.py")
    assert tags(repository) != before


def test_compiled_files_and_times_do_not_change_the_tag(repository):
    before = tags(repository)
    (repository / "code/__pycache__").mkdir()
    (repository / "code/__pycache__/main.cpython-311.pyc").write_bytes(b"x")
    os.utime(repository / "code/main.py", (0, 0))
    assert tags(repository) == before


def test_copies_are_readable_by_everybody(repository, tmp_path):
    (repository / "code/main.py").chmod(0o600)
    recipes._copy("code", tmp_path / "copy")
    assert (tmp_path / "copy/main.py").stat().st_mode & 0o444 == 0o444


def test_archive_and_reference_carry_the_same_tag():
    ref = build.reference(BY_NAME["moorage"])
    assert ref.startswith("moorage.local/moorage:")
    assert build.archive(Path("/c"), ref) == Path(f"/c/moorage-{ref.rpartition(':')[2]}.tar")


def test_pruning_keeps_the_newest_archives_of_one_image(tmp_path):
    for age in range(5):
        path = tmp_path / f"moorage-{age:012x}.tar"
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    other = tmp_path / "moorage-deps-000000000009.tar"
    other.touch()
    os.utime(other, (0, 0))
    removed = build.prune(tmp_path, "moorage")
    assert sorted(path.name for path in removed) == ["moorage-000000000003.tar", "moorage-000000000004.tar"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"MOORAGE_CACHE": "/m", "XDG_CACHE_HOME": "/x"}, "/m/images"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/moorage/images"),
        ({}, str(Path.home() / ".cache/moorage/images")),
    ],
)
def test_the_cache_folder_follows_the_environment(environment, folder):
    assert build.cache_folder(environment) == Path(folder)


def test_another_llama_cpp_build_fails_with_both_numbers():
    recipes.check_llamacpp_build("version: 0.7.0 (build 11669, commit Debian)\n", "11669\n")
    with pytest.raises(BuildError, match=r"build 11700, expected is build 11669"):
        recipes.check_llamacpp_build("version: 0.7.1 (build 11700, commit Debian)\n", "11669\n")
    with pytest.raises(BuildError, match="build none"):
        recipes.check_llamacpp_build("no such file", "11669\n")


@pytest.mark.parametrize("name", build.KNOWN)
def test_every_image_runs_without_root_and_has_a_containerfile_that_agrees(name):
    layer = BY_NAME[name]
    settings = dict(zip(layer.settings[::2], layer.settings[1::2], strict=True))
    containerfile = (ROOT / "images" / name / "Containerfile").read_text()
    assert settings["--user"] == "65532:65532"
    assert "USER 65532:65532" in containerfile
    entrypoint = settings["--entrypoint"].replace(",", ", ")
    assert f"ENTRYPOINT {entrypoint}" in containerfile or "ggml-org" in containerfile


def test_a_machine_without_tools_is_told_which_are_missing(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(BuildError, match="missing: buildah, mmdebstrap;"):
        build.install_tools(BY_NAME["llamacpp-cpu"])
    with pytest.raises(BuildError, match="missing: binutils, buildah, gcc, mmdebstrap, util-linux;"):
        build.install_tools(BY_NAME["vllm-cpu"])


def test_an_image_in_the_cache_is_not_built_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "install_tools", lambda _: pytest.fail("nothing was to be built"))
    path = build.archive(tmp_path / "images", build.reference(BY_NAME["llamacpp-cpu"]))
    path.parent.mkdir()
    path.touch()
    assert build.main(["--print-json", "llamacpp-cpu"]) == 0
    assert f'"archive": "{path}"' in capsys.readouterr().out


def test_whatever_the_compiled_modules_are_made_from_makes_them_anew():
    inputs = {path for name in BY_NAME["moorage-native"].inputs for path in source_files(ROOT / name)}
    for module in native.MODULES:
        source = native.SOURCES / f"moorage/gateway/{module}.py"
        used = re.findall(r"^(?:from|import) (moorage\.\S+)", source.read_text(), re.MULTILINE)
        files = [native.SOURCES / f"{name.replace('.', '/')}.py" for name in used]
        assert {source, *(file for file in files if file.exists())} <= inputs, module


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.cpython-311-x86_64-linux-gnu.so", b"GLIBC_2.2.5\0GLIBC_2.34\0", ""),
        ("a.cpython-311-x86_64-linux-gnu.so", b"GLIBC_2.36\0", ""),
        ("a.cpython-311-x86_64-linux-gnu.so", b"GLIBC_2.38\0GLIBC_2.4\0", "2.38 is newer"),
        ("a.cpython-312-x86_64-linux-gnu.so", b"GLIBC_2.34\0", "not for Python 3.11"),
    ],
)
def test_compiled_modules_that_the_image_could_not_load_are_left_out(name, content, why):
    found = recipes.unfit_modules({name: content})
    assert (why in found) if why else not found
