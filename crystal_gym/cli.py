"""The command ``crystal-gym``: what a word on the command line leads to, and how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from crystal_gym.commands.arguments import build_parser
from crystal_gym.commands.terminal import coloured, shows_progress

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``crystal-gym``; defaults to those of the process.

    Returns:
        Exit status: 0 done, 1 an error that is explained in one sentence on standard error, 2
        wrong usage, 130 interrupted.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where a reader that has left can be met
    except BrokenPipeError:
        # Nothing to explain; and nothing to flush when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    if not hasattr(options, "run"):
        options.parser.print_help()
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _COMMANDS[options.run](options)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: datasets are as they were, and finished graphs and calculations are "
            "kept; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        raise
    except (BrokenProcessPool, MemoryError) as error:
        _complain(
            f"out of memory, or a worker process was killed ({error}): close other programs, or "
            "use fewer --workers"
        )
        return 1
    except (BrokenExecutor, ValueError, TypeError, ImportError, OSError) as error:
        _complain(str(error))
        return 1
    return 0


def _complain(text: str) -> None:
    print(f"{coloured('crystal-gym:', 'red', sys.stderr)} {text}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a sentence: where in the code it was given helps no user of a command."""
    print(f"{coloured('crystal-gym:', 'yellow', sys.stderr)} {message}", file=sys.stderr)


def _quickstart(options: argparse.Namespace) -> None:
    from crystal_gym.commands.quickstart import quickstart

    text = quickstart(
        options.output, minutes=options.minutes, crystals=options.crystals, seed=options.seed
    )
    print(f"\n{text}\nwritten to {options.output}: table.md, picture.png, settings.json")


def _data(options: argparse.Namespace) -> None:
    from crystal_gym.commands.data import ACTIONS

    ACTIONS[options.run.removeprefix("data_")](options)


def _train(options: argparse.Namespace) -> None:
    from crystal_gym.commands.train import train_as_told

    text = train_as_told(options)
    if text is not None:
        print(text)


def _evaluate(options: argparse.Namespace) -> None:
    from crystal_gym.commands.evaluate import EvaluationConfig, evaluate_policies, planned

    if options.threads is not None and options.policies:
        from crystal_gym.extras import require_agents

        require_agents()
        import torch

        torch.set_num_threads(options.threads)
    names = [f.name for f in dataclasses.fields(EvaluationConfig)]
    settings = {name: getattr(options, name) for name in names}
    settings |= {name: tuple(settings[name]) for name in ("policies", "targets")}
    config = EvaluationConfig(**settings)
    if options.dry_run:
        print(planned(config, options.output))
        return
    text = evaluate_policies(config, options.output, progress=shows_progress())
    print(
        f"\n{text}\nwritten to {options.output}: report.html to look at, results.json, tables.md, "
        "designs/"
    )


def _design(options: argparse.Namespace) -> None:
    from crystal_gym.commands.design import design_compounds, planned

    if options.dry_run:
        print(planned(options))
        return
    from crystal_gym.extras import require_agents

    require_agents()
    print(design_compounds(options))


def _report(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if (folder / "design.json").exists():
        from crystal_gym.commands.design import write_report
    elif (folder / "results.json").exists():
        from crystal_gym.commands.evaluate import write_report
    else:
        raise ValueError(
            f"{folder} holds neither design.json nor results.json: expected the folder of a "
            "finished `crystal-gym design` or `crystal-gym evaluate`"
        )
    try:
        print(write_report(folder))
    except _NO_RESULTS as error:
        raise ValueError(
            f"{folder} cannot be shown ({type(error).__name__}: {error}): expected the folder of a "
            "finished `crystal-gym design` or `crystal-gym evaluate`, as it was written"
        ) from error


# What a page raises on results that no command wrote.
_NO_RESULTS = (
    ArithmeticError,
    AttributeError,
    FileNotFoundError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def _label(options: argparse.Namespace) -> None:
    from crystal_gym.commands.label import label_references, label_structures

    if options.structures[:1] == ["references"]:
        print(label_references(options))
    else:
        print(label_structures(options))


def _doctor(options: argparse.Namespace) -> None:
    from crystal_gym.commands.doctor import Health, examine

    marks = {
        Health.WELL: ("ok ", "green"),
        Health.ABSENT: ("-  ", "dim"),
        Health.ILL: ("BAD", "red"),
    }
    # Lines of a pipe stay whole: they hold commands and paths.
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100_000
    found = []
    for finding in examine(options.pseudo, options.pw):
        found.append(finding)
        if not options.json:
            head = f"{finding.subject:<16} "
            lines = textwrap.wrap(
                head + finding.text,
                width - 4,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
            print(coloured(*marks[finding.health]), "\n    ".join(lines), flush=True)
    if options.json:
        print(json.dumps([{**f._asdict(), "health": f.health.value} for f in found], indent=1))
    ill = [f.subject for f in found if f.health is Health.ILL]
    if ill:
        raise ValueError(
            f"live calculations cannot work yet ({', '.join(ill)}); all else does without them"
        )


def _completion(options: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(build_parser(), options.shell))


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quickstart": _quickstart,
    **dict.fromkeys(
        ("data_list", "data_fetch", "data_build", "data_show", "data_export", "data_publish"), _data
    ),
    "train": _train,
    "evaluate": _evaluate,
    "design": _design,
    "report": _report,
    "label": _label,
    "doctor": _doctor,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
