"""The cluster kit's pure parts, and the two that must never be wrong: whom it kills and what it overwrites."""

import hashlib
import ipaddress
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import Cluster, ClusterError, build, cgroups, components, config, network, oci, pki, processes, state
from e2e.cluster import __main__ as command_line
from e2e.cluster.network import Plan

GO_MOD = (components.GO_MODULE / "go.mod").read_text()


# --- components -------------------------------------------------------------------------------------------------------


def test_a_binary_named_in_the_environment_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOORAGE_BIN_KUBE_APISERVER", str(tmp_path / "mine"))
    assert components.locate("kube-apiserver") == tmp_path / "mine"


def test_a_binary_is_found_only_after_it_was_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path))
    monkeypatch.delenv("MOORAGE_BIN_CTR", raising=False)
    assert components.locate("ctr") is None
    built = tmp_path / "containerd" / "v2.2.1" / "ctr"
    built.parent.mkdir(parents=True)
    built.touch()
    assert components.locate("ctr") == built


def test_an_unknown_binary_is_an_error() -> None:
    with pytest.raises(KeyError):
        components.locate("kubeadm")


def test_the_cache_follows_the_desktop_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOORAGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert components.cache_root() == Path("/somewhere/moorage")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("kubelet", "k8s.io/kubernetes"),
        ("etcd", "go.etcd.io/etcd/server/v3"),
        ("coredns", "github.com/coredns/coredns"),
    ],
)
def test_the_named_version_is_the_one_that_go_builds(name: str, module: str) -> None:
    component = next(c for c in components.COMPONENTS if c.name == name)
    assert component.module is not None
    pins = (component.module / "go.mod").read_text()
    assert re.search(rf"^\s*(require )?{re.escape(module)} {re.escape(component.version)}( |$)", pins, re.MULTILINE)


def test_every_staging_module_has_the_version_of_kubernetes() -> None:
    pins = re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ (\S+)$", GO_MOD, re.MULTILINE)
    assert len(pins) == 33
    assert set(pins) == {components.KUBERNETES.replace("v1.", "v0.")}


def test_a_control_plane_waits_for_nothing_of_the_node() -> None:
    names = {component.name for component in components.of_groups(components.CONTROL_PLANE)}
    assert names == {"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "etcd"}
    assert not {"kubelet", "containerd", "helm"} & {c.name for c in components.of_groups(components.SIMULATION)}


def test_our_own_program_is_built_anew_when_its_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "main.go"
    source.write_text("package main")
    before = components.digest((tmp_path,))
    source.write_text("package main // changed")
    assert components.digest((tmp_path,)) != before


def test_go_commands_for_a_module_of_ours_and_for_a_release() -> None:
    by_name = {component.name: component for component in components.COMPONENTS}
    [(command, where)] = build.go_commands(by_name["etcd"], Path("/target"))
    assert (command[:2], command[-3:], where) == (
        ["go", "build"],
        ["-o", "/target/etcd", "go.etcd.io/etcd/server/v3"],
        components.GO_MODULE,
    )
    [(command, _)] = build.go_commands(by_name["helm"], Path("/target"))
    assert (command[:2], command[-1]) == (["go", "install"], "helm.sh/helm/v4/cmd/helm@v4.3.1")


# --- network ----------------------------------------------------------------------------------------------------------


def test_two_clusters_share_no_address() -> None:
    one, other = Plan(0), Plan(1)
    assert not {one.host, one.node, one.pods, one.services} & {other.host, other.node, other.pods, other.services}
    assert not network.free(other, [other.pods])
    assert network.free(other, [one.network])


@pytest.mark.parametrize(
    ("route", "free"),
    [
        ("default", True),
        ("192.0.2.0/24", True),
        ("10.160.255.0/30", False),
        ("10.160.0.7", False),
        ("10.0.0.0/8", False),
        ("10.161.0.0/16", True),
    ],
)
def test_a_network_in_use_is_not_chosen(route: str, free: bool) -> None:
    assert network.free(Plan(0), [route]) is free


def test_every_rule_on_the_host_carries_the_mark_of_its_cluster() -> None:
    for rule in network.rules(Plan(3)):
        assert rule[rule.index("--comment") + 1] == "moorage:mrg3"


def test_a_proxy_is_never_asked_for_a_clusters_addresses() -> None:
    direct = network.without_proxy({"NO_PROXY": "example.com"})["NO_PROXY"].split(",")
    assert "example.com" in direct
    ranges = [ipaddress.ip_network(entry) for entry in direct if "/" in entry]
    assert all(ipaddress.ip_address(Plan(index).host) in ranges[0] for index in (0, 31))


def test_free_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    ports = network.free_ports([f"port-{i}" for i in range(20)])
    assert len(set(ports.values())) == 20
    assert max(ports.values()) < 32768


# --- processes --------------------------------------------------------------------------------------------------------


def test_the_program_name_in_a_stat_line_may_hold_anything() -> None:
    assert processes.parse_stat("7 (a) S (b c) R " + " ".join(str(i) for i in range(1, 40))) == ("R", 19)


def _sleeper(tmp_path: Path) -> processes.Process:
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    process = processes.start("sleeper", command, tmp_path / "log")
    assert any((tmp_path / "log").read_text() == "up\n" for _ in processes.ticks(120, 0.05))
    return process


def test_a_started_process_is_stopped(tmp_path: Path) -> None:
    process = _sleeper(tmp_path)
    assert processes.alive(process)
    processes.stop(process)
    assert not processes.alive(process)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "an earlier one"}])
def test_a_stranger_with_the_same_process_id_is_left_alone(tmp_path: Path, change: dict[str, object]) -> None:
    process = _sleeper(tmp_path)
    try:
        stale = replace(process, **change)  # type: ignore[arg-type]
        assert not processes.alive(stale)
        processes.stop(stale, patience=0.2)
        assert processes.alive(process)
        with pytest.raises(ProcessLookupError):
            processes.program_pid(stale)
    finally:
        processes.stop(process)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    process = processes.start("stubborn", [sys.executable, "-c", code], tmp_path / "log")
    assert any((tmp_path / "log").read_text() == "up\n" for _ in processes.ticks(120, 0.05))
    processes.stop(process, patience=0.2)
    assert not processes.alive(process)


def test_the_program_inside_a_wrapper_is_found_and_stopped(tmp_path: Path) -> None:
    inner = "import time; print('up', flush=True); time.sleep(600)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = processes.start("wrapped", [sys.executable, "-c", outer], tmp_path / "log", wrapped=True)
    assert any((tmp_path / "log").read_text() == "up\n" for _ in processes.ticks(120, 0.05))
    program = processes.program_pid(process)
    assert program != process.pid
    processes.stop(process)
    assert processes.start_time(program) is None


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_state_is_read_back_as_written(tmp_path: Path) -> None:
    record = state.State(tmp_path / "demo", server="https://127.0.0.1:1", ports={"etcd": 2}, link=3, node=True)
    record.add(processes.Process("etcd", 10, 20, "boot", ["etcd", "--x"], "/log", {"A": "b"}))
    record.add(processes.Process("etcd", 11, 21, "boot", ["etcd", "--x"], "/log"))
    found = state.load(tmp_path / "demo")
    assert found == record
    assert [process.pid for process in found.processes] == [11]


def test_a_state_of_another_kit_can_still_be_taken_down(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"processes": [], "link": 2, "unknown": true}')
    found = state.load(tmp_path)
    assert found is not None
    assert found.link == 2


def test_no_state_means_no_cluster(tmp_path: Path) -> None:
    assert state.load(tmp_path / "demo") is None


@pytest.mark.parametrize("name", ["", "Demo", "../demo", "a b", "x" * 21])
def test_a_name_that_is_not_a_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError):
        Cluster(name)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_only_name_servers_that_the_node_can_reach_are_kept() -> None:
    text = "# comment\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.7\nsearch example.com\nnameserver\n"
    assert config.nameservers(text) == ["192.0.2.7"]


def test_without_a_name_server_nothing_is_forwarded() -> None:
    assert "forward" not in config.corefile(Path("/c"), Plan(0), [])
    assert "forward . 192.0.2.7\n" in config.corefile(Path("/c"), Plan(0), ["192.0.2.7"])


def test_two_kubelets_have_roots_of_their_own() -> None:
    roots = {config.kubelet(Path("/c"), Plan(index))["cgroupRoot"] for index in range(3)}
    assert roots == {"/moorage-mrg0", "/moorage-mrg1", "/moorage-mrg2"}


def test_hierarchies_of_both_versions_are_found() -> None:
    mountinfo = (
        "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n"
        "31 24 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
        "32 24 0:28 / /tmp/cgroup rw - tmpfs cgroup rw\n"
    )
    assert cgroups.parse_hierarchies(mountinfo) == [
        (Path("/sys/fs/cgroup/cpu"), "cgroup"),
        (Path("/sys/fs/cgroup/unified"), "cgroup2"),
    ]


def test_certificates_pass_the_strictest_check_of_openssl(tmp_path: Path) -> None:
    tokens = pki.make(tmp_path, addresses=["127.0.0.1"], node="n")
    strict = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", "127.0.0.1"]
    checked = subprocess.run(
        [*strict, "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "apiserver.crt")],
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    for certificate, wanted in (("apiserver", "Authority Key Identifier"), ("ca", "Subject Key Identifier")):
        text = subprocess.run(
            ["openssl", "x509", "-in", str(tmp_path / f"{certificate}.crt"), "-noout", "-text"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert wanted in text
        assert "X509v3 Key Usage: critical" in text
    assert len(set(tokens.values())) == len(tokens)
    assert (tmp_path / "tokens.csv").stat().st_mode & 0o077 == 0


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_image_archive_is_whole_and_reproducible(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    for archive in ("one.tar", "two.tar"):
        oci.write_archive(tmp_path / archive, "localhost/x:1", program, command=["/pause"])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        content = {member.name: _read(tar, member) for member in tar.getmembers()}
    entry = json.loads(content["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(_checked(content, entry))
    layer = _checked(content, manifest["layers"][0])
    image = json.loads(_checked(content, manifest["config"]))
    assert image["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert image["config"]["User"] == "65532:65532"


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _checked(content: dict[str, bytes], blob: dict[str, object]) -> bytes:
    algorithm, _, value = str(blob["digest"]).partition(":")
    data = content[f"blobs/{algorithm}/{value}"]
    assert hashlib.sha256(data).hexdigest() == value
    assert len(data) == blob["size"]
    return data


# --- command line -----------------------------------------------------------------------------------------------------


def test_kubectl_gets_its_own_options() -> None:
    options = command_line.parse(["kubectl", "demo", "--", "exec", "pod", "--", "ls", "-l"])
    assert (options.name, options.rest) == ("demo", ["exec", "pod", "--", "ls", "-l"])


def test_an_error_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["status", "never-started"]) == 1
    assert capsys.readouterr().err == "error: cluster never-started is down\n"
