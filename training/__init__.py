"""Offline: from a recipe to an engine file, and how good it is."""
