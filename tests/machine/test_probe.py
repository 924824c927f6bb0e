"""The probe as a whole: what it remembers, what it reads anew, and what it tells."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from autotune.core.hardware import Hardware, RatePoint
from autotune.errors import AutotuneError, UsageError
from autotune.machine import gpus as gpus_module
from autotune.machine import probe as probe_module
from autotune.machine.gpus import TorchBuild
from autotune.machine.host import Host
from autotune.machine.probe import load_hardware, look, probe, summary_lines
from autotune.machine.process import Measurement, Request
from autotune.machine.rates import Rates
from tests.fakes_nvml import GIB, FakeGpu, FakeNvml

HOST = Host(
    name="Testor 9000",
    uuid="CPU-1",
    cores=2,
    memory_bytes=24 * GIB,
    free_bytes=20 * GIB,
    used_by_others_bytes=3 * GIB,
    supports_bf16=True,
)
POINTS = (
    RatePoint(what="matmul", dtype="bfloat16", shape=(512, 512, 512), per_second=1.5e12, spread=0.02),
    RatePoint(what="matmul", dtype="float32", shape=(512, 512, 512), per_second=3e11, spread=0.01),
    RatePoint(what="copy", dtype="float32", shape=(100,), per_second=1.5e11, spread=0.01),
    RatePoint(what="copy", dtype="float32", shape=(1000,), per_second=2e10, spread=0.03),
)


class Machine:
    """A host, perhaps with a GPU, and a measuring process that answers at once; `measured` counts its runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path, *gpus: FakeGpu) -> None:
        self.home = home
        self.host = HOST
        self.requests: list[Request] = []
        self.lines: list[str] = []
        self.cpu_share: float | None = 0.99
        self.points = POINTS
        self.nvml = FakeNvml(*gpus) if gpus else None
        monkeypatch.setitem(sys.modules, "pynvml", self.nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(probe_module, "read_host", lambda: self.host)
        monkeypatch.setattr(probe_module, "measure_in_process", self.measure)
        torch = TorchBuild(version="2.13.0", cuda=(13, 0) if gpus else None)
        monkeypatch.setattr(probe_module, "read_torch_build", lambda: torch)
        monkeypatch.setattr(gpus_module, "read_torch_build", lambda: torch)

    def measure(self, request: Request, *, progress: Any) -> Measurement:
        self.requests.append(request)
        cuda = request.uuid is not None
        rates = Rates(points=self.points, launch_s=5e-6, launch_spread=0.04, cpu_share=None if cuda else self.cpu_share)
        return Measurement(
            memory_bytes=139 * GIB if cuda else None,
            compute_capability=(9, 0) if cuda else None,
            context_bytes=GIB // 2 if cuda else None,
            workspace_bytes=GIB // 32 if cuda else None,
            rates=rates,
            wall_s=21.0,
        )

    def probe(self, *, refresh: bool = False) -> Hardware:
        self.lines.clear()
        return probe(home=self.home, refresh=refresh, progress=self.lines.append)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path, FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b", name="NVIDIA L4"))


def test_a_cpu(cpu: Machine) -> None:
    """Memory and cores are the host's, rates the process's, and the machine is asked once."""
    hardware = cpu.probe()
    assert (hardware.kind, hardware.name, hardware.cores) == ("cpu", "Testor 9000", 2)
    assert (hardware.memory_bytes, hardware.host_memory_bytes) == (24 * GIB, 24 * GIB)
    assert (hardware.free_bytes, hardware.used_by_others_bytes) == (20 * GIB, 3 * GIB)
    assert (hardware.supports_bf16, hardware.supports_tf32, hardware.device_index) == (True, False, None)
    assert (hardware.rates, hardware.launch_s, hardware.noise) == (POINTS, 5e-6, 0.015)
    assert hardware.versions["torch"].startswith("2.")
    assert hardware.trustworthy
    assert cpu.requests == [Request(uuid=None, cores=2, free_bytes=20 * GIB)]


def test_a_gpu(cuda: Machine) -> None:
    """The first visible one, pinned by its UUID; memory is CUDA's total and not the driver's."""
    hardware = cuda.probe()
    assert (hardware.kind, hardware.name, hardware.uuid) == ("cuda", "NVIDIA H200", "GPU-a")
    assert (hardware.memory_bytes, hardware.free_bytes) == (139 * GIB, 137 * GIB)
    assert (hardware.used_by_others_bytes, hardware.reserved_bytes) == (2 * GIB, 1 * GIB)
    assert (hardware.context_bytes, hardware.workspace_bytes) == (GIB // 2, GIB // 32)
    assert (hardware.supports_bf16, hardware.supports_tf32, hardware.compute_capability) == (True, True, (9, 0))
    assert (hardware.device_index, hardware.other_devices, hardware.mig) == (0, ("NVIDIA L4",), False)
    assert (hardware.driver, hardware.cuda_driver, hardware.versions["cuda"]) == ("580.159.03", "13.0", "13.0")
    assert (hardware.cores, hardware.host_memory_bytes, hardware.host_free_bytes) == (2, 24 * GIB, 20 * GIB)
    assert [link.uuid for link in hardware.peer_links] == ["GPU-b"]
    assert cuda.requests[0].uuid == "GPU-a"


def test_a_slice_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A MIG slice is measured, remembered and pinned under its own UUID."""
    part = FakeGpu(uuid="MIG-1", name="NVIDIA H200 MIG 1g.18gb", total=18 * GIB)
    machine = Machine(monkeypatch, tmp_path, FakeGpu(uuid="GPU-a", mig_mode=1, slices=[part]))
    hardware = machine.probe()
    assert (hardware.uuid, hardware.mig, hardware.free_bytes) == ("MIG-1", True, 15 * GIB)
    assert machine.requests[0].uuid == "MIG-1"


def test_a_driver_that_counts_its_own_share_as_used(cuda: Machine) -> None:
    """Then what others hold is what CUDA's total lacks of being free."""
    assert cuda.nvml is not None
    cuda.nvml.gpus[0].unsupported = frozenset({"nvmlDeviceGetMemoryInfo_v2"})
    hardware = cuda.probe()
    assert (hardware.reserved_bytes, hardware.used_by_others_bytes) == (None, 2 * GIB)


def test_rates_are_remembered_and_memory_is_not(cpu: Machine, cuda: Machine) -> None:
    """The second probe measures nothing, and yet knows what is free now, what is visible now, and what is used."""
    assert cuda.nvml is not None
    first = cuda.probe()
    cuda.nvml.gpus[0].used = 100 * GIB
    del cuda.nvml.gpus[1]
    second = cuda.probe()
    assert len(cuda.requests) == 1
    assert (second.free_bytes, second.used_by_others_bytes, second.other_devices) == (39 * GIB, 100 * GIB, ())
    assert (second.rates, second.memory_bytes, second.context_bytes) == (POINTS, 139 * GIB, GIB // 2)
    assert f"measured on {first.measured_at}; refresh=true measures again" in cuda.lines[0]


def test_refresh_measures_again(cpu: Machine) -> None:
    """And what it finds is what later probes know."""
    cpu.probe()
    cpu.cpu_share = 0.5
    assert cpu.probe().trustworthy
    assert not cpu.probe(refresh=True).trustworthy
    assert len(cpu.requests) == 2


def test_doubtful_rates_are_measured_again(cpu: Machine) -> None:
    """By each command, until there is no doubt; meanwhile the fastest of each rate counts, for load only slows."""
    cpu.cpu_share = 0.5
    assert cpu.probe().rates == POINTS
    products, copies = [replace(point, per_second=2e12) for point in POINTS[:2]], POINTS[2:3]
    cpu.points = (*products, *(replace(point, per_second=1.0) for point in copies))
    second = cpu.probe()
    assert not second.trustworthy
    assert second.rates == (*products, *POINTS[2:])
    assert any("not to be trusted" in line for line in cpu.lines)
    cpu.cpu_share, cpu.points = 0.99, POINTS[1:]
    assert cpu.probe().rates == POINTS[1:]
    assert cpu.probe().trustworthy
    assert len(cpu.requests) == 3


def test_another_driver_is_measured_anew(cuda: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is keyed by the device and all that its rates depend on."""
    cuda.probe()
    monkeypatch.setattr(FakeNvml, "nvmlSystemGetDriverVersion", lambda self: "590.1")
    cuda.probe()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    cuda.probe()
    assert [request.uuid for request in cuda.requests] == ["GPU-a", "GPU-a", "GPU-b"]


@pytest.mark.parametrize("text", ["", '{"kind": "cpu"}'])
def test_a_damaged_cache_is_measured_anew(cpu: Machine, text: str) -> None:
    """It is a cache: damage costs time, not the command."""
    before = cpu.probe()
    (path,) = (cpu.home / "hardware").iterdir()
    path.write_text(text)
    assert cpu.probe().rates == before.rates
    assert len(cpu.requests) == 2
    assert any("damaged" in line for line in cpu.lines)
    assert load_hardware(path).rates == before.rates


def test_a_lost_gpu_fails_and_writes_nothing(cuda: Machine) -> None:
    """Neither a CPU search nor a half-filled cache."""
    assert cuda.nvml is not None
    cuda.nvml.gpus[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(AutotuneError, match="lost"):
        cuda.probe()
    assert list(cuda.home.iterdir()) == []


def test_a_gpu_that_slows_down_is_not_trusted(cuda: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What held the clocks down while measuring is recorded; heat is a reason for doubt."""
    assert cuda.nvml is not None
    cuda.nvml.gpus[0].clock_events = 0x4 | 0x20
    real = cuda.measure

    def slowly(request: Request, *, progress: Any) -> Measurement:
        import time

        time.sleep(0.3)
        return real(request, progress=progress)

    monkeypatch.setattr(probe_module, "measure_in_process", slowly)
    hardware = cuda.probe()
    assert hardware.throttled == ("sw_power_cap", "sw_thermal_slowdown")
    assert not hardware.trustworthy


def test_a_file_from_elsewhere(cuda: Machine, tmp_path: Path) -> None:
    """hardware=FILE.json: what one machine wrote another one reads."""
    written = cuda.probe()
    (path,) = (cuda.home / "hardware").iterdir()
    assert load_hardware(path) == written


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read"), ("{", "no JSON"), ("{}", "kind: missing")])
def test_a_file_that_is_none(tmp_path: Path, text: str | None, words: str) -> None:
    """A usage error that names the file."""
    path = tmp_path / "h.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_hardware(path)
    assert all(str(path) in problem for problem in caught.value.problems)


def test_the_summary_of_a_gpu(cuda: Machine) -> None:
    """Name, memory, cores, main rates with their spreads, and the verdict."""
    lines = summary_lines(cuda.probe())
    assert lines[:-1] == [
        "NVIDIA H200 (GPU-a, compute capability 9.0, driver 580.159.03)",
        "not used    NVIDIA L4",
        "memory      139 GiB, 137 GiB free, 2 GiB held by others, 512 MiB for a context",
        "cores       2, 24 GiB of host memory",
        "matmul      bfloat16 1.5 TFLOP/s ±2%, float32 300 GFLOP/s ±1%",
        "memory copy 20 GB/s ±3%",
        "launch      5.0 us ±4% for a small operator",
        "noise       1.5% from repeat to repeat: steady",
    ]
    assert lines[-1].endswith("in 21.0 s")


def test_the_summary_of_a_noisy_machine(cpu: Machine) -> None:
    """It says that it is too noisy, and what to do."""
    cpu.cpu_share = 0.5
    text = "\n".join(summary_lines(cpu.probe()))
    assert "NOT TRUSTED other processes took 50% of the cores' time" in text
    assert "refresh=true" in text
    assert "steady" not in text


def test_a_summary_without_rates() -> None:
    """A hardware file written by hand has none; then nothing is claimed."""
    hardware = Hardware(
        kind="cpu",
        name="X",
        uuid="CPU-0",
        memory_bytes=GIB,
        free_bytes=GIB,
        used_by_others_bytes=0,
        cores=1,
        host_memory_bytes=GIB,
        host_free_bytes=GIB,
    )
    assert summary_lines(hardware) == ["X (CPU-0)", "memory      1 GiB, 1 GiB free", "cores       1"]


def test_probing_imports_no_torch_here(tmp_path: Path) -> None:
    """A context or thread pool in this process would be every trial's burden."""
    code = (
        "import sys; from pathlib import Path\n"
        "import autotune.machine.probe as p; from autotune.machine.process import *\n"
        "def fail(*a, **k): raise AutotuneError('not measured here')\n"
        "p.measure_in_process = fail\n"
        "try: p.probe(home=Path(sys.argv[1]), progress=lambda line: None)\n"
        "except AutotuneError: pass\n"
        "import json; print(json.dumps('torch' in sys.modules))"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) is False


def test_a_cache_that_cannot_be_written_is_told_before_measuring(cpu: Machine) -> None:
    """Not after the minute that a probe takes."""
    (cpu.home / "hardware").touch()
    with pytest.raises(UsageError, match="home: cannot write"):
        cpu.probe()
    assert cpu.requests == []


def test_a_look_measures_nothing(cpu: Machine) -> None:
    """It has the facts of a probe, and no rates."""
    seen = look()
    assert (cpu.requests, seen.rates) == ([], ())
    probed = cpu.probe()
    unknown = {"rates": (), "launch_s": None, "launch_spread": None, "noise": None, "cpu_share": None, "doubts": ()}
    assert seen == replace(probed, **unknown, measured_at=None, measured_in_s=None)


def test_a_look_at_a_gpu_knows_what_it_can_compute(cuda: Machine) -> None:
    """So that a type that it lacks is refused before a probe."""
    seen, probed = look(), cuda.probe()
    for fact in ("kind", "uuid", "compute_capability", "supports_bf16", "supports_tf32", "name"):
        assert getattr(seen, fact) == getattr(probed, fact)
