"""Checks before Qt: is it whole, is there a screen; with the command that helps if not (imports nothing of Qt)."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES: dict[str, str] = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libOpenGL.so.0": "libopengl0",
    "libGLX.so.0": "libglx0",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libX11.so.6": "libx11-6",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libxcb.so.1": "libxcb1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libwayland-client.so.0": "libwayland-client0",
    "libwayland-cursor.so.0": "libwayland-cursor0",
}
"""Missing library -> Debian or Ubuntu package that has it."""

QT_MODULES = ("PySide6.QtCore", "PySide6.QtGui", "PySide6.QtWidgets")
NO_SCREEN_PLATFORMS = ("offscreen", "minimal", "vnc")
XCB_PLUGIN = Path("Qt", "plugins", "platforms", "libqxcb.so")


class DisplayError(RuntimeError):
    """There can be no window here; the message says why and what helps."""


def require_window(environ: Mapping[str, str] = os.environ) -> None:
    """Raise DisplayError unless a window can be opened: Qt imports, there is a screen, its plug-in loads."""
    require_qt()
    require_screen(environ)
    if uses_xcb(environ):
        require_xcb_plugin()


def require_qt(importer: Callable[[str], Any] = importlib.import_module) -> None:
    """Raise DisplayError unless PySide6 can be imported."""
    for name in QT_MODULES:
        try:
            importer(name)
        except ModuleNotFoundError as error:
            raise DisplayError(f'{error.name} is missing: pip install "PySide6-Essentials>=6.10,<6.12"') from None
        except ImportError as error:
            raise DisplayError(f"Qt cannot be loaded: {library_advice(str(error))}") from None


def require_screen(environ: Mapping[str, str] = os.environ) -> None:
    """Raise DisplayError unless there is a screen."""
    if not has_screen(environ):
        shown = environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")
        why = f"cannot connect to display {shown}" if shown else "neither DISPLAY nor WAYLAND_DISPLAY is set"
        raise DisplayError(f"no screen: {why}; use `lowdose live --headless`")


def has_screen(
    environ: Mapping[str, str] = os.environ,
    *,
    platform: str = sys.platform,
    load: Callable[[str], Any] = ctypes.CDLL,
) -> bool:
    """Tell whether a window would have somewhere to appear; offscreen counts when asked for explicitly."""
    if environ.get("QT_QPA_PLATFORM", "").split(":")[0] in NO_SCREEN_PLATFORMS or not platform.startswith("linux"):
        return True
    if environ.get("WAYLAND_DISPLAY") and not environ.get("QT_QPA_PLATFORM", "").startswith("xcb"):
        return True
    display = environ.get("DISPLAY", "")
    return bool(display) and x_server_answers(display, load)


def x_server_answers(display: str, load: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Tell whether an X server lets us in; True when that cannot be tried, so that Qt speaks for itself."""
    try:
        xcb = load("libxcb.so.1")
    except OSError:
        return True
    xcb.xcb_connect.restype = ctypes.c_void_p
    xcb.xcb_connect.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]
    xcb.xcb_connection_has_error.argtypes = [ctypes.c_void_p]
    xcb.xcb_disconnect.argtypes = [ctypes.c_void_p]
    connection = xcb.xcb_connect(display.encode(), None)
    try:
        return not xcb.xcb_connection_has_error(connection)
    finally:
        xcb.xcb_disconnect(connection)


def uses_xcb(environ: Mapping[str, str] = os.environ, *, platform: str = sys.platform) -> bool:
    """Tell whether Qt would take its X11 plug-in."""
    asked = environ.get("QT_QPA_PLATFORM", "").split(":")[0]
    if not platform.startswith("linux"):
        return False
    return asked.startswith("xcb") or (not asked and not environ.get("WAYLAND_DISPLAY"))


def require_xcb_plugin(plugin: Path | None = None, load: Callable[[str], Any] = ctypes.CDLL) -> None:
    """Raise DisplayError if Qt's X11 plug-in lacks a library: Qt itself would abort the process."""
    plugin = plugin or xcb_plugin_path()
    if plugin is None or not plugin.exists():
        return
    try:
        load(str(plugin))
    except OSError as error:
        raise DisplayError(f"Qt's X11 plug-in cannot be loaded: {library_advice(str(error))}") from None


def xcb_plugin_path() -> Path | None:
    """Return where PySide6 keeps its X11 plug-in; None if it is not installed."""
    spec = importlib.util.find_spec("PySide6")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / XCB_PLUGIN


def library_advice(error: str) -> str:
    """Return what to install for a loader's error message.

    Examples
    --------
    >>> library_advice("libEGL.so.1: cannot open shared object file: No such file or directory")
    'libEGL.so.1 is missing: apt-get install libegl1'
    """
    found = re.search(r"(lib[\w.+-]+?\.so[.\d]*): cannot open", error)
    if found is None:
        return error
    library = found.group(1)
    package = PACKAGES.get(library)
    if package is None:
        return f"{library} is missing: install the system package that has it (apt-file search {library})"
    return f"{library} is missing: apt-get install {package}"
