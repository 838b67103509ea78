import sys

import pytest

from lowdose.acquisition.display.qt_checks import (
    DisplayError,
    has_screen,
    library_advice,
    require_qt,
    require_screen,
    require_xcb_plugin,
    uses_xcb,
)

CANNOT_OPEN = "{}: cannot open shared object file: No such file or directory"


class Xcb:
    """Stands in for libxcb: lets everybody in or nobody."""

    def __init__(self, *, refuses):
        self.closed = False
        self.xcb_connect = self._function(lambda *_: 1)
        self.xcb_connection_has_error = self._function(lambda *_: int(refuses))
        self.xcb_disconnect = self._function(self._close)

    @staticmethod
    def _function(call):
        def function(*arguments):
            return call(*arguments)

        return function

    def _close(self, *_):
        self.closed = True


def raising(error):
    def load(_):
        raise error

    return load


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libEGL.so.1", "libegl1"),
        ("libGL.so.1", "libgl1"),
        ("libxkbcommon.so.0", "libxkbcommon0"),
        ("libfontconfig.so.1", "libfontconfig1"),
        ("libdbus-1.so.3", "libdbus-1-3"),
        ("libglib-2.0.so.0", "libglib2.0-0"),
        ("libgthread-2.0.so.0", "libglib2.0-0"),
        ("libxcb-cursor.so.0", "libxcb-cursor0"),
    ],
)
def test_a_missing_library_is_named_with_its_package(library, package):
    error = ImportError(CANNOT_OPEN.format(library))
    with pytest.raises(DisplayError, match=f"{library} is missing: apt-get install {package}$"):
        require_qt(raising(error))


def test_an_unknown_library_is_named():
    assert "libodd.so.7 is missing" in library_advice(CANNOT_OPEN.format("libodd.so.7"))


def test_missing_pyside_says_how_to_get_it():
    with pytest.raises(DisplayError, match="pip install"):
        require_qt(raising(ModuleNotFoundError("No module named 'PySide6'", name="PySide6")))


def test_qt_is_whole_here():
    require_qt()


def test_offscreen_counts_as_a_screen_when_asked_for():
    assert has_screen({"QT_QPA_PLATFORM": "offscreen"}, platform="linux")


def test_no_display_is_no_screen():
    assert not has_screen({}, platform="linux")
    with pytest.raises(DisplayError, match=r"no screen: .*use `lowdose live --headless`"):
        require_screen({}) if sys.platform.startswith("linux") else pytest.skip("Linux only")


def test_a_display_that_refuses_is_no_screen():
    xcb = Xcb(refuses=True)
    assert not has_screen({"DISPLAY": ":9"}, platform="linux", load=lambda _: xcb)
    assert xcb.closed


def test_a_display_that_answers_is_a_screen():
    assert has_screen({"DISPLAY": ":9"}, platform="linux", load=lambda _: Xcb(refuses=False))


def test_wayland_windows_and_macos_have_screens():
    assert has_screen({"WAYLAND_DISPLAY": "wayland-0"}, platform="linux")
    assert has_screen({}, platform="win32")
    assert has_screen({}, platform="darwin")


def test_a_broken_xcb_plugin_is_found_before_qt_aborts(tmp_path):
    plugin = tmp_path / "libqxcb.so"
    plugin.write_bytes(b"")
    error = OSError(CANNOT_OPEN.format("libxcb-cursor.so.0"))
    with pytest.raises(DisplayError, match="apt-get install libxcb-cursor0"):
        require_xcb_plugin(plugin, raising(error))


def test_xcb_is_used_on_x11_only():
    assert uses_xcb({"DISPLAY": ":0"}, platform="linux")
    assert not uses_xcb({"QT_QPA_PLATFORM": "offscreen"}, platform="linux")
    assert not uses_xcb({}, platform="win32")
