"""ConfigError: the user's settings cannot be used, and why (imports nothing)."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is wrong: the message names it, what was got and what was expected. Ends a command with code 2."""
