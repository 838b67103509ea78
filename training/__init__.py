"""Offline: from a recipe to an engine file (nothing here yet)."""
