from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from lowdose.config.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL_LINES = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.partition("#")[0].strip()
]


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("lowdose")])
def test_every_lowdose_command_of_the_readme_parses(line):
    command = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    context = command.make_context("lowdose", arguments, resilient_parsing=False) if not arguments else None
    while arguments and hasattr(command, "commands"):
        assert arguments[0] in command.commands, line
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context("lowdose", arguments)
    context.close()


@pytest.mark.parametrize("target", re.findall(r"^make (\w[\w-]*)", "\n".join(SHELL_LINES), flags=re.M))
def test_every_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.S))
def test_python_examples_of_the_readme_run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_every_picture_of_the_readme_is_there(picture):
    assert (ROOT / picture).is_file()
