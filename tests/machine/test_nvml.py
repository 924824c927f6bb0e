"""What NVML's answers become, with the module faked: every GPU here is laid out by the test."""

import sys
import time
from typing import Any

import pynvml
import pytest

from autotune.errors import AutotuneError
from autotune.machine.nvml import ClockWatch, Gpu, NoGpu, process_bytes, read_gpus, read_memory
from tests.fakes_nvml import GIB, FakeGpu, FakeNvml

FIRST, SECOND = "GPU-aaaa1111-0000", "GPU-bbbb2222-0000"
EVERY_OPTIONAL = frozenset(
    {
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetEccMode",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetMaxClockInfo",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses",
    }
)


def install(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> Any:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def two(monkeypatch: pytest.MonkeyPatch, **first: Any) -> Any:
    return install(monkeypatch, FakeNvml(FakeGpu(uuid=FIRST, **first), FakeGpu(uuid=SECOND, name="NVIDIA L4")))


def uuids(gpus: tuple[Gpu, ...]) -> list[str]:
    return [gpu.uuid for gpu in gpus]


def test_a_whole_gpu_answers_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units: watts out of milliwatts, CUDA 13.0 out of 13000; the driver's own share is not counted as used."""
    two(monkeypatch)
    gpu = read_gpus(None)[0]
    assert (gpu.uuid, gpu.name, gpu.index, gpu.mig) == (FIRST, "NVIDIA H200", 0, False)
    assert (gpu.memory.total, gpu.memory.free) == (140 * GIB, 137 * GIB)
    assert (gpu.memory.used, gpu.memory.reserved) == (2 * GIB, 1 * GIB)
    assert (gpu.driver, gpu.cuda_driver, gpu.compute_capability) == ("580.159.03", (13, 0), (9, 0))
    assert (gpu.ecc, gpu.ecc_errors, gpu.power_limit_w) == (True, 3, 700.0)
    assert (gpu.clock_limit_mhz, gpu.memory_clock_limit_mhz) == (1980, 3201)
    assert [(p.uuid, p.nvlink, p.peer_access) for p in gpu.peer_links] == [(SECOND, True, True)]


def test_what_a_board_does_not_support_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is None, never a guess; memory falls back to the call that every driver has."""
    two(monkeypatch, unsupported=EVERY_OPTIONAL)
    gpu = read_gpus(None)[0]
    assert (gpu.ecc, gpu.ecc_errors, gpu.power_limit_w, gpu.clock_limit_mhz) == (None, None, None, None)
    assert (gpu.compute_capability, gpu.memory.reserved, gpu.memory.used) == (None, None, 3 * GIB)
    assert [(p.nvlink, p.peer_access) for p in gpu.peer_links] == [(None, None)]
    assert process_bytes(FIRST, 1) is None


def test_gpus_without_nvlink_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVLink and plain peer access are asked apart."""
    two(monkeypatch, nvlink_status=pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)
    assert [(p.nvlink, p.peer_access) for p in read_gpus(None)[0].peer_links] == [(False, True)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [FIRST, SECOND]),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        (SECOND, [SECOND]),
        ("GPU-bbbb", [SECOND]),
        ("0,5,1", [FIRST]),  # CUDA stops at the first device that does not exist
        ("1,-1,0", [SECOND]),
    ],
)
def test_cuda_visible_devices_is_honoured(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    """By index or UUID, in the order given (CUDA C++ programming guide, environment variables)."""
    two(monkeypatch)
    assert uuids(read_gpus(visible)) == expected


@pytest.mark.parametrize("visible", ["", "-1", "none", "0,0", "7", "GPU-cccc", "GPU-"])
def test_a_choice_that_leaves_no_gpu(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    """Nothing visible means the CPU, and the message holds what was given."""
    two(monkeypatch)
    with pytest.raises(NoGpu, match=f"CUDA_VISIBLE_DEVICES='{visible}'"):
        read_gpus(visible)


def test_the_cpu_can_be_chosen_beside_a_broken_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a broken driver says how, so NVML must not be asked first."""
    install(monkeypatch, FakeNvml(FakeGpu(), init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    with pytest.raises(NoGpu, match="hides every GPU"):
        read_gpus("")


def test_no_devices_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without GPUs."""
    install(monkeypatch, FakeNvml())
    with pytest.raises(NoGpu, match="no NVIDIA GPU"):
        read_gpus(None)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, NoGpu, "library is missing"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, NoGpu, "not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, AutotuneError, "reboot"),
        (pynvml.NVML_ERROR_UNKNOWN, AutotuneError, "nvidia-smi"),
    ],
)
def test_nvml_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], words: str
) -> None:
    """No driver is a machine without a GPU; a broken one must not quietly become a CPU run."""
    install(monkeypatch, FakeNvml(FakeGpu(), init_error=code))
    with pytest.raises(kind, match=words):
        read_gpus(None)


def test_nvml_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python package is missing."""
    install(monkeypatch, None)
    with pytest.raises(NoGpu, match="nvidia-ml-py"):
        read_gpus(None)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_is_a_failure_unless_another_is_named(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Falling back would hide it; the message says what to do, and what it says works."""
    two(monkeypatch, error=code)
    for visible in (None, "0", FIRST):
        with pytest.raises(AutotuneError, match=r"GPU 0.*CUDA_VISIBLE_DEVICES"):
            read_gpus(visible)
    assert uuids(read_gpus("1")) == uuids(read_gpus(SECOND)) == [SECOND]


def test_a_gpu_that_is_lost_between_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also optional questions notice it, and no session stays open."""
    nvml = two(monkeypatch)
    read_gpus(None)
    nvml.gpus[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(AutotuneError, match="lost"):
        read_memory(FIRST)
    assert nvml.open_sessions == 0


def test_a_gpu_that_does_not_answer_is_left_out_behind_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour's fault is not ours, nor is a GPU of another container."""
    nvml = two(monkeypatch)
    for code in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NO_PERMISSION):
        nvml.gpus[1].error = code
        assert uuids(read_gpus(None)) == [FIRST]


def sliced() -> FakeGpu:
    slices = [
        FakeGpu(uuid=f"MIG-{n}", name="NVIDIA H200 MIG 1g.18gb", total=18 * GIB, used=n * GIB, reserved=0)
        for n in (1, 2)
    ]
    return FakeGpu(uuid=FIRST, mig_mode=1, slices=slices)


@pytest.mark.parametrize(("visible", "uuid", "used"), [(None, "MIG-1", 1), ("0", "MIG-1", 1), ("MIG-2", "MIG-2", 2)])
def test_a_mig_slice_has_its_own_memory_and_uuid(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, uuid: str, used: int
) -> None:
    """CUDA gives a process one slice; clocks and power are those of the whole GPU."""
    install(monkeypatch, FakeNvml(sliced(), FakeGpu(uuid=SECOND)))
    (gpu,) = read_gpus(visible)
    assert (gpu.uuid, gpu.mig, gpu.name, gpu.index) == (uuid, True, "NVIDIA H200 MIG 1g.18gb", 0)
    assert (gpu.memory.total, gpu.memory.used) == (18 * GIB, used * GIB)
    assert gpu.power_limit_w == 700.0
    assert read_memory(uuid) == gpu.memory


def test_mig_mode_without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA cannot use a GPU in MIG mode before somebody cuts it."""
    install(monkeypatch, FakeNvml(FakeGpu(mig_mode=1)))
    with pytest.raises(NoGpu):
        read_gpus(None)


def test_memory_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed by process id; None when it is not listed, as in a container."""
    two(monkeypatch, processes={41: 7, 42: GIB})
    assert process_bytes(FIRST, 42) == GIB
    assert process_bytes(FIRST, 43) is None


def watch(uuid: str) -> tuple[str, ...] | None:
    with ClockWatch(uuid) as clocks:
        deadline = time.monotonic() + 5
        while not clocks.reasons and time.monotonic() < deadline:
            time.sleep(0.01)
            if not clocks._thread.is_alive():
                break
    return clocks.reasons


@pytest.mark.parametrize("name", ["nvmlDeviceGetCurrentClocksEventReasons", ""])
def test_clock_reasons_are_seen_under_either_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Drivers before 535 have the older function only; idleness (bit 0) is no slowdown."""
    nvml = two(monkeypatch, clock_events=0x1 | 0x4 | 0x40, unsupported=frozenset({name}))
    assert watch(FIRST) == ("sw_power_cap", "hw_thermal_slowdown")
    assert nvml.open_sessions == 0


def test_clock_reasons_that_nobody_tells_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is not the same as none seen."""
    two(monkeypatch, unsupported=EVERY_OPTIONAL)
    assert watch(FIRST) is None
