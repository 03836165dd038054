"""The ``ptt`` command: its subcommands by name, and the configuration that they share.

Every command takes ``--config FILE``, before or after its name; else ``PTT_CONFIG``, ``./ptt.toml``,
``/etc/ptt/ptt.toml``. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

A subcommand finds the configuration as ``ctx.obj.config`` (``Context``; take it with ``@click.pass_obj``).
"""

from __future__ import annotations

import importlib
import os
import pathlib
from functools import cached_property

import click

import ptt
from ptt.config import Config, ConfigError, load
from ptt.service import privileges

_COMMANDS = {
    "alias": "ptt.cli.directory:alias",
    "check": "ptt.cli.check:check",
    "demo": "ptt.cli.demo:demo",
    "dkim": "ptt.cli.dkim:dkim",
    "dns": "ptt.cli.dns:dns",
    "domain": "ptt.cli.directory:domain",
    "git": "ptt.cli.git:git",
    "group": "ptt.cli.group:group",
    "init": "ptt.cli.init:init",
    "limits": "ptt.cli.limits:limits",
    "queue": "ptt.cli.queue:queue",
    "route": "ptt.cli.route:route",
    "sink": "ptt.cli.sink:sink",
    "tls": "ptt.cli.tls:tls",
    "user": "ptt.cli.directory:user",
}
"""Imported when used: a command starts without the libraries of the others."""

_AS_CONTROL = frozenset({"alias", "domain", "git", "group", "limits", "route", "user"})
"""Write the git database, which the control process's user owns: root becomes that user first."""


class Context:
    """What the commands share: ``ctx.obj``."""

    def __init__(self, file: str | None, command: str | None) -> None:
        self.named = file
        self.account = os.getuid()  # who runs the command: ``config`` may make root another user
        self._command = command

    @property
    def file(self) -> str:
        """The configuration's file, absolute."""
        if self.named:
            return os.path.abspath(self.named)
        if found := os.environ.get("PTT_CONFIG"):
            return os.path.abspath(found)
        return os.path.abspath("ptt.toml") if pathlib.Path("ptt.toml").exists() else "/etc/ptt/ptt.toml"

    @cached_property
    def config(self) -> Config:
        """The configuration; its mistakes end the command with code 2."""
        config = read(self.file)
        if self._command in _AS_CONTROL:
            privileges.become("control", config)
        return config


def read(file: str) -> Config:
    """Load a configuration, or print every mistake in it and end with code 2."""
    try:
        return load(file)
    except ConfigError as e:
        for mistake in e.mistakes:
            click.echo(f"{e.file}: {mistake}", err=True)
        raise SystemExit(2) from e


def _take_config(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    obj = context.find_object(Context)
    if value is not None and obj is not None:
        obj.named = value


def _with_config(command: click.Command) -> click.Command:
    """Let a command, and all commands below it, take ``--config`` too."""
    if not any("--config" in parameter.opts for parameter in command.params):
        option = click.Option(
            ["--config"], metavar="FILE", callback=_take_config, expose_value=False, help="the configuration"
        )
        command.params.append(option)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _with_config(below)
    return command


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """A file, port or socket that is not to be had is no fault of ours: one line instead of a traceback."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click's: the reader of our output has gone
        except OSError as e:
            raise click.ClickException(f"{e.filename}: {e.strerror}" if e.filename else e.strerror or str(e)) from e

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101  (the table above)
        return _with_config(command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="the configuration [PTT_CONFIG, ./ptt.toml, /etc/ptt/ptt.toml]")
@click.version_option(ptt.__version__, prog_name="ptt")
@click.pass_context
def main(context: click.Context, config: str | None) -> None:
    """PTT, an SMTP service for sending. The service itself is `ptt-worker`."""
    context.obj = Context(config, context.invoked_subcommand)
