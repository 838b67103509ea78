"""Threads that end together, and the error that ended them."""

from __future__ import annotations

import threading

import pytest

from lowdose.acquisition.worker import Worker


def test_loops_run_in_threads_of_their_name_until_told_to_end():
    worker, names = Worker("service"), []

    def loop():
        names.append(threading.current_thread().name)
        worker.stopping.wait(10)

    worker.start(a=loop, b=loop)
    assert not worker.wait(0)
    worker.stopping.set()
    assert worker.join()
    assert sorted(names) == ["a", "b"]
    worker.maybe_raise()


def test_an_error_ends_the_others_and_is_raised_again(caplog):
    worker, told = Worker("service", on_failure=lambda error: told.append((error, worker.stopping.is_set()))), []
    error = OSError("cable")

    def fail():
        raise error

    worker.start(good=lambda: worker.stopping.wait(10), bad=fail)
    assert worker.wait(10)
    assert worker.join()
    assert told == [(error, False)], "told before anything else happens"
    with pytest.raises(OSError, match="cable"):
        worker.maybe_raise()
    assert "the service failed" in caplog.text
    assert "Traceback" in caplog.text


def test_an_error_that_says_all_there_is_to_say_needs_no_traceback(caplog):
    worker = Worker("service", explained=OSError)

    def fail():
        raise OSError("the disk is full")

    worker.guarded(fail)
    assert caplog.text == ""
    with pytest.raises(OSError, match="the disk is full"):
        worker.maybe_raise()


def test_a_loop_that_hangs_is_told():
    worker, released = Worker("service"), threading.Event()
    worker.start(hangs=lambda: released.wait(10))
    worker.stopping.set()
    assert not worker.join(0.01)
    released.set()
    assert worker.join()
