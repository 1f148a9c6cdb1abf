"""The two systems that are compared, each started as people start it, and what each costs the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.unlimited import UNLIMITED

ROOT = Path(__file__).parent.parent.parent
_START_LIMIT = 60.0
_STOP_LIMIT = 15.0
_HAS_PROCESS_CLOCKS = psutil.LINUX
# Whoever sets these for their own server doesn't mean this one.
_FOREIGN = ("DATABASE_URL", "GRPC_LISTEN", "GRPC_TARGET", "BRIDGE_LISTEN", "DATA_DIR", "CHATKIT_SERVER", "LOG_LEVEL")


@dataclass(frozen=True, slots=True)
class System:
    """A running system: where it listens, and the process at the root of each of its parts."""

    name: str
    port: int
    roots: Mapping[str, psutil.Process]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time by part, since each began."""
        return {part: _cpu_of_tree(root) for part, root in self.roots.items()}

    def rss(self) -> dict[str, int]:
        """Resident bytes by part; what several processes share counts for each of them."""
        return {part: sum(_rss(process) for process in _tree(root)) for part, root in self.roots.items()}

    def pss(self) -> dict[str, int]:
        """Resident bytes by part; what several processes share counts once."""
        return {part: sum(_pss(process) for process in _tree(root)) for part, root in self.roots.items()}

    def version_of(self, part: str) -> str:
        """What a part's program says of itself. Sample: "postgres (PostgreSQL) 18.4"."""
        said = subprocess.run([self.roots[part].exe(), "--version"], check=True, capture_output=True, text=True)
        return said.stdout.strip()


@asynccontextmanager
async def open_baseline(folder: Path) -> AsyncIterator[System]:
    """Run the SDK in a web server of its own."""
    (port,) = _free_ports(1)
    with _process("baseline", ["-m", "tests.load.baseline", str(port)], {}, folder) as process:
        await _until_ready("baseline", process, lambda: _accepts(port), folder)
        yield System("baseline", port, {"baseline": psutil.Process(process.pid)})


@asynccontextmanager
async def open_ours(folder: Path) -> AsyncIterator[System]:
    """Run server and bridge, and the embedded PostgreSQL with them."""
    grpc_port, http_port = _free_ports(2)
    data_dir = folder / "data"
    environment = {
        "ENVIRONMENT": "development",
        **UNLIMITED,
        "CHATKIT_SERVER": "tests.load.scripted:create_server",
        "DATA_DIR": str(data_dir),
        "GRPC_LISTEN": f"127.0.0.1:{grpc_port}",
        "GRPC_TARGET": f"127.0.0.1:{grpc_port}",
        "BRIDGE_LISTEN": f"127.0.0.1:{http_port}",
    }
    with (
        _postgres_ended(data_dir),
        _process("server", ["-m", "server"], environment, folder) as server,
        _process("bridge", ["-m", "bridge"], environment, folder) as bridge,
    ):
        await _until_ready("server", server, lambda: _accepts(grpc_port), folder)
        await _until_ready("bridge", bridge, lambda: _is_healthy(http_port), folder)
        roots = {"server": server.pid, "bridge": bridge.pid, "postgres": _postmaster(data_dir)}
        yield System("ours", http_port, {part: psutil.Process(pid) for part, pid in roots.items() if pid})


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chatkit-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _process(
    name: str, arguments: list[str], environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the benchmark, which then ends them in the right order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _postgres_ended(data_dir: Path) -> Iterator[None]:
    """The server ends its PostgreSQL; where it was killed, this does."""
    try:
        yield
    finally:
        if (pid := _postmaster(data_dir)) and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGINT)
            psutil.wait_procs([psutil.Process(pid)], timeout=_STOP_LIMIT)


def _postmaster(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


async def _until_ready(name: str, process: subprocess.Popen[bytes], is_ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while not await asyncio.to_thread(is_ready):
        if process.poll() is not None or time.monotonic() > deadline:
            log = (folder / f"{name}.log").read_text(errors="replace")
            raise RuntimeError(f"{name} did not start (exit code {process.returncode}):\n{log[-4000:]}")
        await asyncio.sleep(0.1)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/chatkit/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def _tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


def _cpu_of_tree(root: psutil.Process) -> float:
    # Children that have ended are counted with the one that waited for them.
    ended = root.cpu_times()
    return sum(map(_cpu, _tree(root))) + ended.children_user + ended.children_system


def _cpu(process: psutil.Process) -> float:
    try:
        if _HAS_PROCESS_CLOCKS:
            # What clock_getcpuclockid() makes of a pid: nanoseconds, where cpu_times() has hundredths of a second.
            return time.clock_gettime(~process.pid << 3 | 2)
        times = process.cpu_times()
        return times.user + times.system
    except (OSError, psutil.NoSuchProcess):
        return 0.0


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(memory, "pss", memory.rss))
