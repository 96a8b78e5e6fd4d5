"""A Ray cluster whose hosts are network namespaces of this machine, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SUBNET = "10.77.3"
GATEWAY = f"{SUBNET}.254"  # this machine, as the hosts see it


def missing() -> str:
    """Why there cannot be a cluster here; empty if there can."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed"
    if not shutil.which("ip") or os.geteuid() != 0:
        return "network namespaces need root and iproute2"
    probe = f"csm-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this machine has no network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace with an address of its own."""

    def __init__(self, bridge: str, name: str, number: int) -> None:
        self.name, self.address, self._cable = name, f"{SUBNET}.{number}", f"csmv{number}"
        ip("netns", "add", name)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", self._cable, "master", bridge, "up")
        for words in (("lo", "up"), ("eth0", "up")):
            ip("-n", name, "link", "set", *words)
        ip("-n", name, "addr", "add", f"{self.address}/24", "dev", "eth0")

    def start(self, command: list[str], **options: object) -> subprocess.Popen[str]:
        """Starts a program on this host."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_worker_niceness"] = "0"  # the default, 15, starves workers on a machine with other work
        arguments = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(arguments, text=True, env=environment, **options)  # type: ignore[call-overload, no-any-return]

    def ray(self, *words: str) -> None:
        """`ray start`; returns when the node runs."""
        limits = ["--object-store-memory=100000000", "--disable-usage-stats"]
        program = [sys.executable, "-m", "ray.scripts.scripts", "start"]
        command = [*program, *words, *limits, f"--node-ip-address={self.address}"]
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output

    def pids(self, program: str = "") -> list[int]:
        """Processes of this host, or those whose command line has `program`."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        pids = []
        for pid in map(int, found):
            with suppress(OSError):
                if program in Path(f"/proc/{pid}/cmdline").read_text():
                    pids.append(pid)
        return pids

    def kill(self, program: str = "") -> int:
        """Kills them with SIGKILL; returns how many there were."""
        pids = self.pids(program)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def cut(self, seconds: float) -> None:
        """Takes the host off the network for a while."""
        ip("link", "set", self._cable, "down")
        time.sleep(seconds)
        ip("link", "set", self._cable, "up")

    def remove(self) -> None:
        while self.kill():
            time.sleep(0.1)
        for words in (("link", "del", self._cable), ("netns", "del", self.name)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)


class Cluster:
    """A head without cores for workers, and `nodes` hosts with one each."""

    def __init__(self, nodes: int) -> None:
        self._bridge = "csmbr0"
        self._folder = tempfile.mkdtemp(prefix="csm-ray-", dir="/tmp")  # paths of sockets must be short
        self.hosts: list[Host] = []
        ip("link", "add", self._bridge, "type", "bridge")
        ip("link", "set", self._bridge, "up")
        ip("addr", "add", f"{GATEWAY}/24", "dev", self._bridge)
        self.hosts += (Host(self._bridge, f"csm-test-{number}", number + 1) for number in range(nodes + 1))
        self.head, self.nodes = self.hosts[0], self.hosts[1:]
        self.address = f"{self.head.address}:6379"
        options = ("--include-dashboard=false", f"--temp-dir={self._folder}", "--num-cpus=0", "--port=6379")
        self.head.ray("--head", *options)
        for node in self.nodes:
            self.join(node)

    def join(self, node: Host) -> None:
        node.ray(f"--address={self.address}", "--num-cpus=1")

    def close(self) -> None:
        for host in self.hosts:
            host.remove()
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", self._bridge)
        shutil.rmtree(self._folder, ignore_errors=True)
