"""`lowdose bench wire`: what is counted, and the names of its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lowdose.acquisition.sockets import Publisher
from lowdose.acquisition.wire import decode, encode
from lowdose.config import bench_record, bench_wire
from lowdose.config.bench_wire import FEWEST_MESSAGES, TRANSPORTS, Arrival, Sent, cases, measure, row_of, run_wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MS = 1_000_000
KEYS = {"transport", "message", "bytes", "messages_per_s", "gb_per_s", "latency_ms", "pace_per_s", "lost", "n"}
KEYS |= {"lost_at_pace"}
RUN = """
import pathlib, sys
from lowdose.config.bench_wire import run_wire
run_wire(size=32, json_file=pathlib.Path(sys.argv[1]), phase_s=0.05)
"""


def arrivals(seqs: Sequence[int], *, every_ms: int = 10, late_ms: int = 2) -> list[Arrival]:
    """Return messages stamped at a pace, each so much later there."""
    return [Arrival(seq, seq * every_ms * MS, (seq * every_ms + late_ms) * MS) for seq in seqs]


def test_throughput_is_that_of_the_first_phase_and_latency_that_of_the_second() -> None:
    first = [Arrival(seq, 0, seq * 10 * MS) for seq in range(FEWEST_MESSAGES, 14)]
    row = row_of("tcp", "block", 2_000_000, Sent(14, 20, 80.04), first + arrivals(range(14, 20)))
    assert row == {
        "transport": "tcp",
        "message": "block",
        "bytes": 2_000_000,
        "messages_per_s": 100.0,
        "gb_per_s": 0.2,
        "latency_ms": dict.fromkeys(("p50", "p90", "p99", "max"), 2.0),
        "pace_per_s": 80.0,
        "lost_at_pace": 0,
        "lost": FEWEST_MESSAGES,
        "n": 20,
    }


def test_messages_sent_one_by_one_at_the_beginning_tell_nothing_of_the_throughput() -> None:
    slow = [Arrival(seq, 0, seq * 1000 * MS) for seq in range(FEWEST_MESSAGES)]
    fast = [Arrival(seq, 0, (5000 + seq) * MS) for seq in range(FEWEST_MESSAGES, 10)]
    row = row_of("tcp", "block", 1000, Sent(10, 12, 1), [*slow, *fast, *arrivals([10, 11])])
    assert (row["messages_per_s"], row["lost"]) == (1000.0, 0)


def test_every_message_that_did_not_come_counts_as_lost_in_either_phase() -> None:
    came = [seq for seq in range(20) if seq not in (5, 6, 17)]
    row = row_of("tcp", "block", 1000, Sent(12, 20, 1), arrivals(came))
    assert (row["lost_at_pace"], row["lost"], row["n"]) == (1, 3, 20)


@pytest.mark.parametrize("came", [[], range(12), range(12, 20)])
def test_a_phase_of_which_nothing_came_is_told_and_no_figure_made_up(came: Sequence[int]) -> None:
    with pytest.raises(RuntimeError, match=f"nothing to measure: of 20 block by ipc, {len(came)} came"):
        row_of("ipc", "block", 1000, Sent(12, 20, 1), arrivals(came))


def test_the_messages_are_those_of_the_live_pipeline() -> None:
    small, large, frame = cases(64)
    assert [case.make(0, 7).counts.shape for case in (small, large)] == [(1, 256), (1, 2000)]  # type: ignore[union-attr]
    picture = frame.make(3, 7)
    assert (picture.image.shape, picture.frame_index) == ((1, 64, 64), 3)  # type: ignore[union-attr]
    for case in (small, large, frame):
        assert encode(decode(encode(case.make(5, 9)))) == encode(case.make(5, 9))
        assert encode(case.make(5, 9))[0] == case.topic.encode()


@pytest.mark.parametrize("kind", range(len(cases(32))))
def test_messages_over_inproc_are_measured_between_threads(kind: int) -> None:
    row = measure("inproc", kind, 32, 0.05)
    assert set(row) == KEYS
    assert row["n"] >= 3 * FEWEST_MESSAGES
    assert 0 <= row["lost"] < row["n"]
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["max"]


def test_a_publisher_that_loses_messages_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Publisher.publish

    def lossy(self: Publisher, message: object) -> None:
        if getattr(message, "seq", 0) % 10 != 4:
            publish(self, message)  # type: ignore[arg-type]

    monkeypatch.setattr(Publisher, "publish", lossy)
    row = measure("inproc", 0, 32, 0.05)
    assert row["lost"] == sum(seq % 10 == 4 for seq in range(row["n"]))


def test_a_sender_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        arguments[-2].close()  # type: ignore[attr-defined] # as the end of a process does

    monkeypatch.setattr(bench_wire, "send_both_phases", fail)
    with pytest.raises(RuntimeError, match="the sender ended before it was done"):
        measure("inproc", 0, 32, 0.05)


@pytest.mark.parametrize("transport", ["ipc", "inproc"])
def test_a_fast_scan_is_recorded_whole_while_others_watch(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = bench_record.SAFETY.model_copy(update={"record_stall_ms": 5_000.0})
    monkeypatch.setattr(bench_record, "SAFETY", patient)  # of inproc, where one interpreter lock holds up everybody
    row = bench_record.measure_recorded(transport, 0.5, rate_per_s=2e6)
    assert (row["transport"], row["ended"], row["lost"]) == (transport, "scanning", 0)
    assert row["blocks"] > 10
    assert row["size_bytes"] > 10_000
    assert set(row["waiting_ms"]) == {"p50", "p90", "p99", "max"}
    bench_record.print_recorded([row])


@pytest.mark.parametrize("size", [15, 4097])
def test_a_size_out_of_bounds_is_refused_before_anything_is_made(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be 16 to 4096 pixels, got {size}"):
        run_wire(size=size, json_file=None)


def test_every_transport_is_measured_with_every_kind_of_message(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "wire.json")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    found = json.loads((tmp_path / "wire.json").read_text(encoding="utf-8"))
    messages = ["SampleBlock 256", "SampleBlock 2000", "DenseFrame 32x32"]
    assert [(row["transport"], row["message"]) for row in found["rows"]] == [
        (t, m) for t in TRANSPORTS for m in messages
    ]
    for row in found["rows"]:
        assert set(row) == KEYS
        assert set(row["latency_ms"]) == {"p50", "p90", "p99", "max"}
        assert row["messages_per_s"] > 0
        assert row["gb_per_s"] == pytest.approx(row["messages_per_s"] * row["bytes"] / 1e9, abs=1e-4)
    assert "DenseFrame 32x32" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["wire.json"]
