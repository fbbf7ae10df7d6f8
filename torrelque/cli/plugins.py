"""Commands that come with packages above the library, as the gRPC server's do: found by their entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

_GROUP = "torrelque.commands"


class Commands(click.Group):
    """The commands of the library, and those that others have brought."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in entry_points(group=_GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        found = [*entry_points(group=_GROUP, name=cmd_name)]
        return _load(found[0]) if found else None


def _load(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        return _missing(entry.name, error.name or "")
    assert isinstance(command, click.Command)
    return command


def _missing(name: str, module: str) -> click.Command:
    """Stand in for a command whose packages are not installed."""

    def explain() -> None:
        raise click.UsageError(f"'{name}' needs the package {module}: pip install 'torrelque[grpc]'")

    return click.Command(
        name, callback=explain, help="(needs its extra: pip install 'torrelque[grpc]')",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )  # fmt: skip
