"""The wire: what goes in comes out, and whatever else comes in is a WireError and nothing worse."""

from __future__ import annotations

import dataclasses
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowdose.acquisition import wire
from lowdose.acquisition.messages import Request, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.status import StatusReport
from lowdose.acquisition.wire import MAX_HEADER_BYTES, PROTOCOL_VERSION, WireError, decode, encode
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.strategies import MESSAGES, messages, quick, thorough

BLOCK = SampleBlock("scan", "digest", 3, 7, np.arange(6, dtype=np.uint16).reshape(2, 3), 11, 1, 2, 3)
BLOCK_FIELDS = {"scan_id": "s", "path_digest": "d", "frame_index": 0, "first": 0, "seq": 0} | dict.fromkeys(
    ("t_first_ns", "t_last_ns", "t_sent_ns"), 0
)
FRAME_FIELDS = {
    "grid": {"shape": (1, 1), "pixel_size_nm": 1.0, "rotation_deg": 0.0},
    "uncertainty_kind": "none",
    "scale": 1,
    "scan_id": "s",
    "path_digest": "d",
    "frame_index": 0,
    "complete": True,
    "samples_used": 1,
    "channels": ("HAADF",),
    "engines": (),
    "dropped": 0,
    "gaps": 0,
    "times_ns": {},
}
START_FIELDS = {
    "scan_id": "s",
    "grid": FRAME_FIELDS["grid"],
    "pattern": {},
    "channels": ("HAADF",),
    "dwell_time_us": 1.0,
    "beam_current_pa": 1.0,
    "energy_kev": 1.0,
    "area_id": 0,
    "replay_of": None,
    "wall_clock_ns": 0,
    "t_ns": 0,
}


def bytes_of(message):
    return [bytes(buffer) for buffer in encode(message)]


def header_of(message):
    return msgpack.unpackb(encode(message)[1], use_list=False)


def forged(kind, fields, arrays, **changes):
    """Return the buffers of a message whose header says of each array what it is, then `changes` it."""
    topic = {"DenseFrame": b"frames", "ScanStart": b"samples", "SampleBlock": b"samples"}[kind]
    described = tuple((name, array.dtype.str, array.shape) for name, array in arrays.items())
    header = {"version": PROTOCOL_VERSION, "type": kind, "fields": fields, "parts": described} | changes
    return [topic, msgpack.packb(header), *(array.tobytes() for array in arrays.values())]


def dense_arrays(**changes):
    one = np.ones((1, 1, 1), "<f4")
    return {
        "image": one,
        "uncertainty": one,
        "visited": np.zeros(1, "<u4"),
        "measured": np.ones((1, 1), "<f4"),
        "hits": np.ones(1, "<u2"),
    } | changes


def start_arrays(**changes):
    return {
        "lengths": np.array([1], "<u4"),
        "positions": np.zeros((1, 2), "<f4"),
        "dwell_times_us": np.ones(1, "<f4"),
        "jumps": np.zeros(1, "|u1"),
    } | changes


def assert_same(got, sent):
    assert type(got) is type(sent)
    for field in dataclasses.fields(sent):
        a, b = getattr(got, field.name), getattr(sent, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, strict=True)
        else:
            assert a == b, field.name


def assert_refused(buffers):
    with pytest.raises(WireError) as refusal:
        decode(buffers)
    assert len(str(refusal.value)) < 2_000


def decoded_or_refused(buffers):
    try:
        return decode(buffers)
    except WireError:
        return None


# --- what goes in comes out -----------------------------------------------------------------------------------------


def test_every_message_type_of_the_wire_has_a_strategy():
    assert set(MESSAGES) == set(wire._CODECS)


@pytest.mark.parametrize("kind", MESSAGES)
def test_round_trip_is_identical(kind):
    @quick
    @given(MESSAGES[kind]())
    def check(message):
        assert_same(decode(bytes_of(message)), message)

    check()


@quick
@given(messages)
def test_a_decoded_message_encodes_to_the_same_bytes(message):
    assert bytes_of(decode(bytes_of(message))) == bytes_of(message)


def test_strided_and_big_endian_arrays_travel_as_c_order_little_endian():
    counts = np.arange(12, dtype=np.uint16).reshape(3, 4).T
    message = dataclasses.replace(BLOCK, counts=counts[::2])
    np.testing.assert_array_equal(decode(bytes_of(message)).counts, counts[::2])
    assert bytes_of(message)[2] == counts[::2].astype("<u2").tobytes()


def test_a_cycle_of_paths_of_different_length_keeps_their_order_dwell_times_and_jumps():
    grid = ScanGrid((4, 4))
    paths = (
        ScanPath(grid, [[0, 0]], 1.5),
        ScanPath(grid, [[1, 1], [2.25, -1]], [1.0, 2.0], [True, False]),
        ScanPath(grid, [[3, 3]] * 3, 0.1),
    )
    sent = ScanStart("s", paths, {"name": "own"}, ("BF",), 1.0, 25.0, 200.0, 2, "older", 5, 6)
    got = decode(bytes_of(sent))
    assert [len(path) for path in got.paths] == [1, 2, 3]
    assert [path.digest for path in got.paths] == [path.digest for path in paths]
    assert got.paths[1].dwell_times_us.tolist() == [1.0, 2.0]
    assert got.paths[1].jumps.tolist() == [True, False]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))])
@quick
@given(messages)
def test_decoded_arrays_are_read_only_whatever_the_buffers_are(wrap, message):
    got = decode([wrap(bytes(buffer)) for buffer in encode(message)])
    arrays = [getattr(got, field.name) for field in dataclasses.fields(got)]
    arrays += [a for path in getattr(got, "paths", ()) for a in (path.positions, path.dwell_times_us, path.jumps)]
    assert not any(a.flags.writeable for a in arrays if isinstance(a, np.ndarray))


def test_c_order_arrays_are_sent_without_a_copy():
    counts = np.ones((1, 5), np.uint16)
    buffer = encode(dataclasses.replace(BLOCK, counts=counts))[2]
    assert np.shares_memory(np.frombuffer(buffer, np.uint16), counts)


def test_a_message_whose_header_would_not_fit_is_refused_by_the_sender():
    with pytest.raises(WireError, match=rf"header of StatusReport is \d+ bytes, at most {MAX_HEADER_BYTES}"):
        encode(StatusReport("microscope", 0, {"text": "x" * MAX_HEADER_BYTES}))


# --- whatever else comes in -----------------------------------------------------------------------------------------


@quick
@given(messages, st.data())
def test_every_truncation_is_refused(message, data):
    buffers = bytes_of(message)
    which = data.draw(st.integers(0, len(buffers) - 1))
    assume(buffers[which])
    keep = data.draw(st.integers(0, len(buffers[which]) - 1))
    assert_refused([*buffers[:which], buffers[which][:keep], *buffers[which + 1 :]])


@quick
@given(messages, st.data())
def test_bytes_too_many_are_refused(message, data):
    buffers = bytes_of(message)
    which = data.draw(st.integers(0, len(buffers) - 1))
    buffers[which] += data.draw(st.binary(min_size=1, max_size=8))
    assert_refused(buffers)


@quick
@given(messages, st.data())
def test_a_missing_or_doubled_part_is_refused(message, data):
    buffers = bytes_of(message)
    which = data.draw(st.integers(0, len(buffers) - 1))
    assert_refused(buffers[:which] + buffers[which + 1 :])
    assert_refused([*buffers, buffers[which]])


@thorough
@given(messages, st.data())
def test_a_flipped_bit_gives_a_valid_message_or_a_wire_error(message, data):
    buffers = [bytearray(buffer) for buffer in encode(message)]
    which = data.draw(st.integers(0, len(buffers) - 1))
    assume(buffers[which])
    bit = data.draw(st.integers(0, 8 * len(buffers[which]) - 1))
    buffers[which][bit // 8] ^= 1 << bit % 8
    decoded_or_refused([bytes(buffer) for buffer in buffers])


@thorough
@given(st.lists(st.binary(max_size=200), max_size=12))
@example([])
@example([b""])
@example([b"", b""])
def test_random_bytes_are_refused(buffers):
    assert_refused(buffers)


@thorough
@given(
    st.sampled_from([b"samples", b"frames", b"status", b"control"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_headers_of_any_other_msgpack_are_refused(topic, header):
    assert_refused([topic, msgpack.packb(header)])


FIELD_VALUES = st.sampled_from([None, True, -1, 2**64 - 1, 1.5, float("nan"), "", "x", b"x", (), (1,), {}, {"a": 1}])


@thorough
@given(messages, st.data())
def test_a_field_of_any_other_value_gives_a_valid_message_or_a_wire_error(message, data):
    header = header_of(message)
    fields = dict(header["fields"])
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(FIELD_VALUES)
    decoded_or_refused([encode(message)[0], msgpack.packb(header | {"fields": fields}), *encode(message)[2:]])


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, 10**9], ids=repr)
def test_another_protocol_version_is_refused_saying_what_to_do(version):
    topic, _, *parts = encode(BLOCK)
    with pytest.raises(WireError, match="update the older side"):
        decode([topic, msgpack.packb(header_of(BLOCK) | {"version": version}), *parts])


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Snapshot"},
        {"type": ""},
        {"type": None},
        {"type": 3},
        {"type": "x" * 60_000},
        {"extra": 1},
        {"fields": BLOCK_FIELDS | {"extra": 1}},
        {"fields": {k: v for k, v in BLOCK_FIELDS.items() if k != "seq"}},
        {"fields": BLOCK_FIELDS | {"seq": "1"}},
        {"fields": BLOCK_FIELDS | {"seq": 1.0}},
        {"fields": BLOCK_FIELDS | {"seq": True}},
        {"fields": BLOCK_FIELDS | {"seq": -1}},
        {"fields": BLOCK_FIELDS | {"first": -1}},
        {"fields": BLOCK_FIELDS | {"frame_index": -1}},
        {"fields": BLOCK_FIELDS | {"scan_id": 5}},
        {"fields": None},
        {"fields": "scan_id"},
        {"parts": None},
        {"parts": ()},
        {"parts": ((),)},
        {"parts": ("counts",)},
        {"parts": (("counts", "<u2"),)},
        {"parts": (("counts", "<u2", None),)},
        {"parts": (("counts", "<u2", 6),)},
        {"parts": (("counts", "<u2", "23"),)},
        {"parts": (("values", "<u2", (2, 3)),)},
        {"parts": (("counts", "<i2", (2, 3)),)},
        {"parts": (("counts", ">u2", (2, 3)),)},
        {"parts": (("counts", "|O", (2, 3)),)},
        {"parts": (("counts", "<u2", (3, 3)),)},
        {"parts": (("counts", "<u2", (2, 2)),)},
        {"parts": (("counts", "<u2", (6,)),)},
        {"parts": (("counts", "<u2", (2, 3, 1)),)},
        {"parts": (("counts", "<u2", (-2, -3)),)},
        {"parts": (("counts", "<u2", (-1, 3)),)},
        {"parts": (("counts", "<u2", (2.0, 3.0)),)},
        {"parts": (("counts", "<u2", (2, True)),)},
        {"parts": (("counts", "<u2", (2**63, 2**63)),)},
        {"parts": (("counts", "<u2", (2**32, 2**32)),)},
        {"parts": (("counts", "<u2", (2**40, 0)),)},
        {"parts": (("counts", "<u2", (2, 3)),) * 2},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_a_header_that_lies_is_refused(change):
    topic, _, *parts = encode(BLOCK)
    assert_refused([topic, msgpack.packb(header_of(BLOCK) | change), *parts])


def test_a_message_under_another_topic_is_refused():
    _, header, *parts = encode(BLOCK)
    assert_refused([b"frames", header, *parts])


@pytest.mark.parametrize("depth", [50, 500, 1_000, 1_020, 5_000])
@pytest.mark.parametrize("where", ["version", "type", "fields", "parts", "shape"])
def test_a_header_nested_however_deeply_is_refused(where, depth):
    nested = b"\x91" * depth + b"\xc0"
    header = {name: msgpack.packb(value) for name, value in header_of(BLOCK).items()}
    header["parts" if where == "shape" else where] = (
        b"\x91\x93" + msgpack.packb("counts") + msgpack.packb("<u2") + nested if where == "shape" else nested
    )
    packed = b"\x84" + b"".join(msgpack.packb(name) + value for name, value in header.items())
    assert_refused([b"samples", packed, *encode(BLOCK)[2:]])


def test_a_header_of_more_than_64_kib_is_not_even_read():
    sent = encode(Request("me", 1, "status", {"x": "y"}))
    padded = msgpack.packb({"version": 1, "type": "Request", "fields": {"client": "x" * MAX_HEADER_BYTES}, "parts": ()})
    with pytest.raises(WireError, match=rf"at most {MAX_HEADER_BYTES} are read"):
        decode([sent[0], padded])


@pytest.mark.parametrize(
    "arrays",
    [
        dense_arrays(visited=np.full(1, 1, "<u4")),
        dense_arrays(visited=np.full(1, 2**32 - 1, "<u4")),
        dense_arrays(visited=np.zeros(2, "<u4")),
        dense_arrays(measured=np.ones((2, 1), "<f4")),
        dense_arrays(measured=np.ones((1, 2), "<f4")),
        dense_arrays(hits=np.ones(2, "<u2")),
        dense_arrays(image=np.ones((2, 1, 1), "<f4")),
        dense_arrays(uncertainty=np.ones((1, 1, 2), "<f4")),
        dense_arrays(image=np.ones((1, 1, 2), "<f4"), uncertainty=np.ones((1, 1, 2), "<f4")),
    ],
    ids=range(9),
)
def test_a_dense_frame_whose_arrays_do_not_fit_each_other_is_refused(arrays):
    assert decoded_or_refused(forged("DenseFrame", FRAME_FIELDS, dense_arrays())) is not None
    assert_refused(forged("DenseFrame", FRAME_FIELDS, arrays))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0},
        {"scale": 3},
        {"scale": -1},
        {"channels": ()},
        {"channels": ("a", "b")},
        {"uncertainty_kind": "certain"},
        {"engines": (("a", "b"),)},
        {"engines": (("a", "b", 3),)},
        {"times_ns": {"sent": "now"}},
        {"grid": {}},
        {"grid": FRAME_FIELDS["grid"] | {"extra": 1}},
        {"grid": FRAME_FIELDS["grid"] | {"shape": (0, 1)}},
        {"grid": FRAME_FIELDS["grid"] | {"shape": (1, 2**40)}},
        {"grid": FRAME_FIELDS["grid"] | {"shape": "11"}},
        {"grid": FRAME_FIELDS["grid"] | {"pixel_size_nm": float("nan")}},
        {"grid": FRAME_FIELDS["grid"] | {"pixel_size_nm": None}},
        {"grid": FRAME_FIELDS["grid"] | {"pixel_size_nm": 0.0}},
        {"grid": FRAME_FIELDS["grid"] | {"rotation_deg": float("inf")}},
    ],
    ids=repr,
)
def test_a_dense_frame_with_a_wrong_field_is_refused(change):
    assert_refused(forged("DenseFrame", FRAME_FIELDS | change, dense_arrays()))


@pytest.mark.parametrize(
    "arrays",
    [
        start_arrays(lengths=np.array([2], "<u4")),
        start_arrays(lengths=np.array([], "<u4")),
        start_arrays(lengths=np.array([1, 0], "<u4")),
        start_arrays(lengths=np.array([2**32 - 1, 2], "<u4")),
        start_arrays(positions=np.zeros((1, 3), "<f4")),
        start_arrays(positions=np.zeros((2, 2), "<f4")),
        start_arrays(positions=np.full((1, 2), np.nan, "<f4")),
        start_arrays(positions=np.full((1, 2), 1e9, "<f4")),
        start_arrays(dwell_times_us=np.zeros(1, "<f4")),
        start_arrays(dwell_times_us=np.full(1, np.inf, "<f4")),
        start_arrays(dwell_times_us=np.ones(2, "<f4")),
        start_arrays(jumps=np.zeros(0, "|u1")),
    ],
    ids=range(12),
)
def test_a_scan_start_whose_paths_cannot_be_followed_is_refused(arrays):
    assert decoded_or_refused(forged("ScanStart", START_FIELDS, start_arrays())) is not None
    assert_refused(forged("ScanStart", START_FIELDS, arrays))


@pytest.mark.parametrize(
    "buffers",
    [
        [*forged("SampleBlock", BLOCK_FIELDS, {}, parts=(("counts", "<u2", (8, 2**30)),)), b"12"],
        [*forged("SampleBlock", BLOCK_FIELDS, {}, parts=(("counts", "<u2", (2**20, 2**30)),)), b""],
        forged(
            "DenseFrame",
            FRAME_FIELDS | {"grid": FRAME_FIELDS["grid"] | {"shape": (16_384, 16_384)}},
            dense_arrays(),
            parts=tuple(
                (name, array.dtype.str, (1, 16_384, 16_384) if array.ndim == 3 else array.shape)
                for name, array in dense_arrays().items()
            ),
        ),
        forged(  # no channel, hence no image that would vouch for the size
            "DenseFrame",
            FRAME_FIELDS | {"channels": (), "grid": FRAME_FIELDS["grid"] | {"shape": (16_384, 16_384)}},
            dense_arrays(
                image=np.zeros((0, 16_384, 16_384), "<f4"),
                uncertainty=np.zeros((0, 16_384, 16_384), "<f4"),
                visited=np.zeros(0, "<u4"),
                measured=np.zeros((0, 0), "<f4"),
                hits=np.zeros(0, "<u2"),
            ),
        ),
        forged(
            "ScanStart",
            START_FIELDS,
            start_arrays(
                lengths=np.zeros(100_000, "<u4"),
                positions=np.zeros((0, 2), "<f4"),
                dwell_times_us=np.zeros(0, "<f4"),
                jumps=np.zeros(0, "|u1"),
            ),
        ),
        forged("ScanStart", START_FIELDS, start_arrays(lengths=np.full(20_000, 2**32 - 1, "<u4"))),
        [b"control", b"\xdd\x7f\xff\xff\xff"],  # an array of 2^31 items
        [b"control", b"\xc6\x7f\xff\xff\xff"],  # 2 GiB of bytes
        [b"control", b"\xdf\x7f\xff\xff\xff"],  # a map of 2^31 items
    ],
    ids=["terabytes", "petabytes", "grid", "no-channel", "paths", "positions", "array", "bytes", "map"],
)
def test_a_message_that_claims_to_be_huge_is_refused_without_allocating(buffers):
    tracemalloc.start()
    try:
        assert_refused(buffers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_a_client_name_that_would_burst_the_reports_is_refused():
    assert decode(bytes_of(Request("x" * 200, 1, "status"))).client == "x" * 200
    header = {"client": "x" * 201, "request_id": 1, "verb": "status", "arguments": {}}
    packed = msgpack.packb({"version": 1, "type": "Request", "fields": header, "parts": ()})
    assert_refused([b"control", packed])


def test_an_end_without_arrays_refuses_any_part():
    assert_refused([*bytes_of(ScanEnd("s", 0, "done")), b""])
