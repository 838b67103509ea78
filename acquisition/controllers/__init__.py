"""Hardware drivers, one file and one row of CONTROLLERS each; the simulated one lives with the simulator."""

CONTROLLERS: dict[str, str] = {}
"""Every hardware driver: name -> "module:Class", imported when it is chosen."""
