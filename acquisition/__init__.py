"""Everything at the microscope console: messages, sockets, assembly, the beam, the display."""
