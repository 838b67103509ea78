"""Names to objects: settings, the composition root, processes, the command line."""
