"""Commands of the domains, by name: their modules are imported when they are asked for."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from core.errors import UserError


class DomainCommand(NamedTuple):
    """A function of a domain that answers to a command; its signature is the command's options.

    Attributes:
        words: the command, or a command of the suite and the option that asks for this instead.
        function: its path; its arguments become options, its docstring their help, and what it
            returns is printed.
        about: one line of help.
    """

    words: tuple[str, ...]
    function: str
    about: str


COMMANDS = (
    DomainCommand(
        ("warp",),
        "domains.medical.warping_files.warp_file",
        "apply a displacement field to an image, to labels or to points",
    ),
    DomainCommand(
        ("test", "--estimates"),
        "domains.speech.scoring.score",
        "score anyone's separated recordings: --estimates FOLDER --references FOLDER",
    ),
)


def find(arguments: Sequence[str]) -> DomainCommand | None:
    """Find the command of a domain that arguments ask for."""
    for command in COMMANDS:
        name, *options = command.words
        given = {argument.partition("=")[0] for argument in arguments[1:]}
        if arguments[:1] == [name] and given.issuperset(options):
            return command
    return None


def run(command: DomainCommand, arguments: Sequence[str]) -> str:
    """Run a command on the arguments after its name.

    Raises:
        UserError: if an argument is wrong.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    module, _, name = command.function.rpartition(".")
    function: Callable[..., str] = getattr(import_module(module), name)
    parser = ArgumentParser(
        prog=f"pleiad {command.words[0]}", description=command.about, exit_on_error=False
    )
    parser.add_function_arguments(function, as_positional=False)
    helped = not {"--help", "-h"}.isdisjoint(arguments)
    try:
        given = parser.parse_args(["--help"] if helped else list(arguments[1:]))
    except ArgumentError as error:
        raise UserError(f"{error} (see `pleiad {' '.join(command.words)} --help`)") from None
    return function(**given.as_dict())
