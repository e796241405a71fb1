"""The state file of the SIMULATED GPUs, and the stub of NVML compiled for it."""

import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

_HERE = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class SimulatedSlice:
    """A MIG device in one of a GPU's seven places; memory in MiB."""

    place: int
    uuid: str
    total: int
    used: int = 0


@dataclass(frozen=True)
class SimulatedGpu:
    """One GPU as the state file tells it; memory in MiB, `used` with the driver's reserve."""

    uuid: str
    total: int = 24564
    used: int = 460
    utilization: int = 0
    name: str = "NVIDIA Simulated 24GB"
    lost: bool = False
    healthy: bool = True
    slices: tuple[SimulatedSlice, ...] = ()


@dataclass
class Machine:
    """Writes the state file whenever something changes; without a driver version the driver is gone."""

    state: Path
    gpus: list[SimulatedGpu] = field(default_factory=list)
    driver: str = "580.95.05"

    def __post_init__(self) -> None:
        self.write()

    def change(self, index: int, **what: object) -> None:
        """Change the hardware: `used=1200`, `lost=True`, `healthy=False`."""
        self.gpus[index] = replace(self.gpus[index], **what)  # type: ignore[arg-type]
        self.write()

    def write(self) -> None:
        lines = [f"driver {self.driver}"] if self.driver else []
        lines += [f"gpu {g.uuid} {g.total} {g.used} {g.utilization} {g.name}" for g in self.gpus]
        lines += [f"mig {i} {s.place} {s.uuid} {s.total} {s.used}" for i, g in enumerate(self.gpus) for s in g.slices]
        lines += [f"lost {i}" for i, g in enumerate(self.gpus) if g.lost]
        lines += [f"health {i} Unhealthy" for i, g in enumerate(self.gpus) if not g.healthy]
        half = self.state.with_suffix(".new")
        half.write_text("\n".join(lines) + "\n")
        half.replace(self.state)


def uuid(number: int) -> str:
    """A UUID that nobody takes for a real GPU's."""
    return f"GPU-00000000-0000-4000-8000-{number:012d}"


def compile_stub(folder: Path) -> Path:
    """The stub of NVML in `folder`; C99 and no GNU extensions, so that older C libraries load it too."""
    return _compile("nvml_stub.c", folder / LIBRARY, "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}")


def compile_oom_engine(folder: Path) -> Path:
    """A static program in `folder` that dies as a llama-server does whose GPU is too small."""
    return _compile("oom_engine.c", folder / "oom-engine", "-static")


def _compile(source: str, target: Path, *options: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("the simulation needs a C compiler: install gcc")
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [compiler, *strict, *options, "-o", str(target), str(_HERE / source)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{source} does not compile: {done.stderr}")
    return target
