"""The `pipelab` command: `lab` opens the notebooks, `demo` does the main job in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipelab.errors import PipelabError

DESCRIPTION = "Pipeline parallelism in PyTorch: plan it, predict it, run it, compare."
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a refused request, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, passed_on = _split_at_dashes(words)
    parser = _parser()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 0
    if passed_on and options.command != "lab":
        parser.error(f"only `pipelab lab` passes on what comes after --; got {' '.join(passed_on)}")
    try:
        return _run(options, passed_on)
    except PipelabError as refusal:
        print(f"pipelab {options.command}: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\npipelab {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """What comes before the first `--`, and what comes after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipelab", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"pipelab {_version()}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    lab = commands.add_parser(
        "lab",
        help="open JupyterLab on the notebooks",
        description="Opens JupyterLab on the notebooks, at the tour.",
        epilog="Options of JupyterLab itself come after --, for example: pipelab lab -- --port 8899",
    )
    lab.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="copy the notebooks there first and open the copies; files that are there already are kept. "
        "Without it, a clone's own notebooks are opened",
    )
    lab.add_argument(
        "--no-browser", action="store_true", help="start the server, print its address, open nothing"
    )

    demo = commands.add_parser(
        "demo",
        help="train a small GPT under three schedules and compare",
        description="Profiles a small GPT, cuts it into two balanced stages, trains a few steps under the "
        "schedules "
        "naive, gpipe and 1f1b, and prints predicted and measured step times. Nothing is downloaded.",
    )
    demo.add_argument(
        "--steps", type=int, default=5, metavar="N", help="training steps per schedule (default: 5)"
    )
    demo.add_argument("--figures", metavar="FOLDER", help="write the figures (PNG) there")
    demo.add_argument("--overwrite", action="store_true", help="replace figures of the same names")
    return parser


def _run(options: argparse.Namespace, passed_on: Sequence[str]) -> int:
    """Each command's module is imported when it is asked for, so that `--help` answers at once."""
    if options.command == "lab":
        from pipelab.cli.lab import open_lab

        return open_lab(options.folder, browser=not options.no_browser, passed_on=passed_on)
    from pipelab.cli.demo import demonstrate

    return demonstrate(steps=options.steps, figures=options.figures, overwrite=options.overwrite)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pipelab")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "(not installed)"
