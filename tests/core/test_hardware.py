"""Work, curves, the verdict on noise, and hardware files: what reads back, and what a bad one is told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.hardware import (
    CPU_SHARE_LIMIT,
    NOISE_LIMIT,
    Hardware,
    PeerLink,
    RateDtype,
    RatePoint,
    What,
    amount_of,
    find_doubts,
    noise_of,
)
from autotune.errors import UsageError

REQUIRED: dict[str, Any] = {
    "kind": "cpu",
    "name": "Xeon",
    "uuid": "CPU-1",
    "memory_bytes": 8,
    "free_bytes": 4,
    "used_by_others_bytes": 3,
    "cores": 2,
    "host_memory_bytes": 8,
    "host_free_bytes": 4,
}


def point(
    side: int = 4, per_second: float = 1e9, spread: float = 0.01, what: What = "matmul", dtype: RateDtype = "bfloat16"
) -> RatePoint:
    return RatePoint(what=what, dtype=dtype, shape=(side, side, side), per_second=per_second, spread=spread)


@pytest.mark.parametrize(
    ("what", "shape", "dtype", "work"),
    [
        ("matmul", (2, 3, 5), "bfloat16", 60),  # 2 M N K
        ("matmul_grad_weight", (2, 3, 5), "float32", 60),
        ("int8_matmul", (2, 3, 5), "float16", 60),
        ("attention_forward", (2, 3, 4, 5), "float32", 960),  # 4 B H S S D, half of it masked
        ("attention_forward_backward", (2, 3, 4, 5), "float32", 3360),  # 3.5 times that
        ("copy", (100,), "float32", 800),  # read and written
        ("add", (100,), "bfloat16", 600),  # two read, one written
        ("host_to_device_pinned", (100,), "uint8", 100),
        ("nf4_dequantize", (3, 5), "bfloat16", 30),  # what comes out
        ("blockwise_quantize", (100,), "float32", 400),  # what goes in
    ],
)
def test_work_by_hand(what: What, shape: tuple[int, ...], dtype: RateDtype, work: int) -> None:
    """Rates of the same work compare across dtypes and libraries, so the count has to be the textbook's."""
    assert amount_of(what, shape, dtype) == work


def test_seconds_of_a_point() -> None:
    """A rate gives back the time it came from, and says what it counts."""
    product, copy = (
        point(side=10, per_second=500.0),
        RatePoint(what="copy", dtype="float32", shape=(10,), per_second=40.0, spread=0.0),
    )
    assert (product.seconds, product.unit) == (4.0, "FLOP")
    assert (copy.seconds, copy.unit) == (2.0, "B")


def test_curves_ascend_and_know_their_best() -> None:
    """A curve holds one operation in one dtype, whatever order it was measured in."""
    hardware = Hardware(**REQUIRED, rates=(point(8, 3e9), point(2, 1e9), point(4, 5e9), point(9, 9e9, dtype="float32")))
    assert [p.shape[0] for p in hardware.curve("matmul", "bfloat16")] == [2, 4, 8]
    assert hardware.best("matmul", "bfloat16") == point(4, 5e9)
    assert hardware.best("matmul", "tf32") is None


def test_noise_is_the_median_spread() -> None:
    """One disturbed rate among many does not condemn a machine."""
    assert noise_of([point(spread=s) for s in (0.01, 0.9, 0.02)]) == 0.02
    assert noise_of([]) is None


@pytest.mark.parametrize(
    ("noise", "share", "throttled", "words"),
    [
        (NOISE_LIMIT + 0.01, 1.0, (), "differ by 11%"),
        (0.01, CPU_SHARE_LIMIT - 0.1, (), "took 20% of the cores"),
        (0.01, None, ("sw_power_cap", "hw_thermal_slowdown"), "itself down (hw_thermal_slowdown)"),
    ],
)
def test_reasons_for_doubt(noise: float, share: float | None, throttled: tuple[str, ...], words: str) -> None:
    """Each on its own is enough, and is said in words; a power cap is how large GPUs always run."""
    (doubt,) = find_doubts(noise=noise, cpu_share=share, throttled=throttled)
    assert words in doubt
    assert not Hardware(**REQUIRED, rates=(point(),), doubts=(doubt,)).trustworthy


def test_no_reason_for_doubt() -> None:
    """A steady machine is trusted; one without rates has nothing to be trusted."""
    assert find_doubts(noise=NOISE_LIMIT, cpu_share=CPU_SHARE_LIMIT, throttled=("sw_power_cap",)) == ()
    assert find_doubts(noise=None, cpu_share=None, throttled=None) == ()
    assert Hardware(**REQUIRED, rates=(point(),)).trustworthy
    assert not Hardware(**REQUIRED).trustworthy


texts = st.text(max_size=8)
counts = st.integers(1, 2**50)
shares = st.floats(0, 2)
points = st.builds(
    RatePoint,
    what=st.sampled_from(["matmul", "copy", "attention_forward"]),
    dtype=st.sampled_from(["float32", "tf32", "bfloat16"]),
    shape=st.lists(counts, min_size=1, max_size=4).map(tuple),
    per_second=st.floats(1, 1e16),
    spread=shares,
)
links = st.builds(PeerLink, uuid=texts, name=texts, nvlink=st.none() | st.booleans(), peer_access=st.none())
hardwares = st.builds(
    Hardware,
    kind=st.sampled_from(["cuda", "cpu"]),
    name=texts,
    uuid=texts,
    memory_bytes=counts,
    free_bytes=counts,
    used_by_others_bytes=counts,
    cores=counts,
    host_memory_bytes=counts,
    host_free_bytes=counts,
    supports_bf16=st.booleans(),
    device_index=st.none() | st.integers(0, 15),
    other_devices=st.lists(texts, max_size=2).map(tuple),
    compute_capability=st.tuples(st.integers(0, 12), st.integers(0, 9)),
    versions=st.dictionaries(texts, texts, max_size=3),
    throttled=st.none() | st.lists(texts, max_size=2).map(tuple),
    peer_links=st.lists(links, max_size=2).map(tuple),
    rates=st.lists(points, max_size=3).map(tuple),
    launch_s=st.none() | shares,
    noise=st.none() | shares,
)


@given(hardwares)
def test_what_is_written_reads_back(hardware: Hardware) -> None:
    """Through JSON, which knows no tuples."""
    assert Hardware.from_dict(json.loads(json.dumps(hardware.to_dict()))) == hardware


def test_defaults_may_be_left_out() -> None:
    """A file written by hand needs only what has no default."""
    assert Hardware.from_dict(REQUIRED) == Hardware(**REQUIRED)


def test_a_bad_file_is_told_everything_at_once() -> None:
    """One error that lists each problem: where, what was given, what is expected."""
    bad = {key: value for key, value in REQUIRED.items() if key != "uuid"} | {
        "kind": "tpu",
        "cores": True,
        "free_bytes": -1,
        "memory_bytes": 1.5,
        "noise": float("nan"),
        "compute_capability": [9],
        "peer_links": ["nvlink"],
        "speed": "fast",
        "rates": [{"what": "matmul", "dtype": "fp8"}],
    }
    with pytest.raises(UsageError) as caught:
        Hardware.from_dict(bad, where="h.json")
    assert sorted(caught.value.problems) == sorted(
        [
            "h.json.uuid: missing, expected a string",
            "h.json.kind: got 'tpu', expected one of cpu, cuda",
            "h.json.cores: got True, expected a whole number",
            "h.json.free_bytes: got -1, expected at least 0",
            "h.json.memory_bytes: got 1.5, expected a whole number",
            "h.json.noise: got nan, expected at least 0",
            "h.json.compute_capability: got [9], expected a list of 2",
            "h.json.peer_links[0]: got 'nvlink', expected an object with the fields of PeerLink",
            next(problem for problem in caught.value.problems if ".speed: unknown" in problem),
            "h.json.rates[0].dtype: got 'fp8', expected one of float32, tf32, bfloat16, float16, uint8",
            "h.json.rates[0].shape: missing, expected a list",
            "h.json.rates[0].per_second: missing, expected a number",
            "h.json.rates[0].spread: missing, expected a number",
        ]
    )


def test_a_gpu_must_say_its_compute_capability() -> None:
    """Without it a step would be traced as on a CPU and replayed as on a GPU; a CPU has none."""
    assert Hardware.from_dict({**REQUIRED, "kind": "cpu"}).compute_capability is None
    with pytest.raises(UsageError) as caught:
        Hardware.from_dict({**REQUIRED, "kind": "cuda"}, where="h.json")
    [problem] = caught.value.problems
    assert problem.startswith("h.json.compute_capability: missing, expected a list of 2")


@pytest.mark.parametrize("values", [None, [], "cpu", 3])
def test_a_file_that_holds_something_else(values: Any) -> None:
    """JSON that is no object at all."""
    with pytest.raises(UsageError, match="expected an object with the fields of Hardware"):
        Hardware.from_dict(values)
