"""The ``pleiad`` command: parse, answer what needs no heavy import at once, exit with a status.

Status 0: done; 2: the user's input was wrong (one line on stderr); 74: a disk is full or not
writable; 130 and
143: stopped by SIGINT and SIGTERM after saving; anything else is a bug of the suite.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

DISK = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EFBIG}
ABOUT = "Train, fine-tune, evaluate and predict with transformer-based systems of seven domains."
ESTIMATE = "measure ten steps, say how long and how much memory the fit takes, keep nothing"
EXAMPLES = """examples:
  pleiad list experiments
  pleiad fit time_series/dlinear_etth1 --data.horizon=192
  pleiad fit time_series/forecast --data.train=sales.csv
  pleiad predict runs/time_series/forecast/0 --input sales.csv --output forecast.csv
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments[:1] == ["doctor"]:  # it must answer even where another `core` hides ours
        sys.exit(_doctor(argparse.Namespace(), []))
    from pleiad.hidden import fault

    if told := fault():
        sys.stderr.write(f"pleiad: {told}\n")
        sys.exit(2)
    from core.errors import UserError
    from data.errors import DataError

    try:
        status = run(arguments)
    except (UserError, DataError) as error:
        status = _fail(error, debug, 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        if error.errno not in DISK:
            raise
        status = _fail(error, debug, 74)
    except KeyboardInterrupt:
        status = 130
    finally:
        _leave_group()
    sys.exit(status)


def _leave_group() -> None:
    """End what joins the processes of a run; left to the interpreter's end, it may abort there."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def run(arguments: list[str]) -> int:
    """Parse and run; give the exit status."""
    from core.errors import UserError
    from pleiad import domain_commands

    if (asked := domain_commands.find(arguments)) is not None:
        _print(domain_commands.run(asked, arguments))
        return 0
    parser, fit = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser, fit)
    known, rest = parser.parse_known_args(arguments)
    if rest and not getattr(known, "takes_keys", False):
        raise UserError(
            f"{known.command}: unexpected {' '.join(rest)}; see `pleiad {known.command} --help`"
        )
    if known.command is None:
        parser.print_help()
        return 0
    if getattr(known, "trust", None):
        _allow(known)
    status: int = known.action(known, rest)
    return status


def _parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    from pleiad import domain_commands

    parser = _Parser(
        prog="pleiad",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(
        name: str, action: Callable[..., int], text: str, **kwargs: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        sub.set_defaults(action=action)
        return sub

    fit = add("fit", _fit, "train an experiment, test it, write its run folder", add_help=False)
    judged = "a run or a model/ folder; with --checkpoint, an experiment"
    for sub, what in (
        (fit, "an experiment, a YAML file, or a run folder"),
        (
            add("test", _evaluate, "repeat a finished run's test, or test a model", add_help=False),
            judged,
        ),
        (add("validate", _evaluate, "the same on the validation split", add_help=False), judged),
    ):
        _completed(sub.add_argument("name", nargs="?", help=what))
        sub.add_argument(
            "--help", "-h", action="store_true", help="show the keys of the experiment"
        )
        sub.add_argument("--run", type=Path, metavar="FOLDER", help="folder of the new run")
        sub.add_argument("--ckpt_path", metavar="last|best|FILE", help="checkpoint to go on from")
        sub.add_argument("--checkpoint", metavar="MODEL", help="weights to begin from, or to judge")
        sub.add_argument("--precision", metavar="32-true|bf16-mixed|auto|...")
        sub.add_argument("--trust", action="append", default=[], metavar="MODULE")
        sub.add_argument("--print_config", action="store_true", help="print the resolved YAML")
        sub.set_defaults(takes_keys=True)

    predict = add(
        "predict",
        _predict,
        "answer on files of your own with a finished run",
        epilog="Further options, --NAME=VALUE, are those of the model's domain; a wrong one lists"
        " them.",
        allow_abbrev=False,
    )
    fit.add_argument("--estimate", action="store_true", help=ESTIMATE)
    _completed(
        predict.add_argument(
            "name", help="a run folder, its model/ folder, or an experiment's name"
        )
    )
    predict.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help="files, folders, quoted patterns such as 'data/**/*.csv', or @LIST, a text file with"
        " one path a line; a model that takes several together has an option for each, such as"
        " --moving and --fixed, and --pairs for a CSV of them",
    )
    predict.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the result of one file; else a folder: one result an input, and manifest.csv;"
        " started again, the command goes on with what is not done",
    )
    predict.add_argument("--plot", type=Path, metavar="PNG", help="also draw a picture of one file")
    predict.add_argument("--trust", action="append", default=[], metavar="MODULE")
    predict.set_defaults(takes_keys=True)

    exits = add(
        "exits",
        _exits,
        "judge a finished run at each of its early exits, and with a gate at prices of a layer",
        epilog="Further options, --KEY=VALUE, are those of the run, as of `pleiad test`.",
        allow_abbrev=False,
    )
    _completed(exits.add_argument("name", help="a run folder, or an experiment's name"))
    exits.add_argument(
        "--beta",
        type=float,
        action="append",
        default=[],
        metavar="PRICE",
        help="of a layer, in units of quality: fit a gate to it; may be repeated",
    )
    exits.add_argument("--soft", action="store_true", help="the gates learn shares of the exits")
    exits.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write the model with the one gate there"
    )
    exits.add_argument("--precision", metavar="32-true|bf16-mixed|auto|...")
    exits.add_argument("--trust", action="append", default=[], metavar="MODULE")
    exits.set_defaults(takes_keys=True)

    listing = add("list", _list, "list systems, experiments, data sets or public checkpoints")
    listing.add_argument("what", choices=("systems", "experiments", "datasets", "checkpoints"))
    for option in ("domain", "task", "status"):
        listing.add_argument(f"--{option}")
    listing.add_argument("--format", choices=("table", "json", "md"), default="table")

    imported = add("import", _import, "turn published weights into a model/ folder")
    imported.add_argument("system", help="the system whose network takes them, such as autoformer")
    imported.add_argument(
        "checkpoint",
        type=Path,
        help="a safetensors or torch file, or a folder with config.json and weights",
    )
    imported.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    imported.add_argument(
        "--config", type=Path, metavar="FILE", help="the published options, JSON or YAML"
    )
    imported.add_argument("--licence", metavar="TEXT", help="of the weights, where not known here")

    show = add("show", _show, "look at a system, an experiment, a data set or your own file")
    show.add_argument("name", help="a system, an experiment, a data set, or a file or folder")
    show.add_argument("--picture", type=Path, metavar="PNG", help="where to draw; default NAME.png")
    show.add_argument("--domain", help="of a file, where its columns do not tell: security, ...")

    catalogue = add("data", _data, "fetch, verify or find a benchmark set")
    catalogue.add_argument("verb", choices=("fetch", "verify", "where"))
    catalogue.add_argument("name")

    reported = add("report", _report, "tables and pictures across runs, or of a study")
    reported.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders, or one folder of a study"
    )
    reported.add_argument("--output", type=Path, metavar="FILE", help="where to write it")
    reported.add_argument(
        "--format",
        choices=("html", "markdown", "latex", "csv"),
        default="html",
        help="of a study; runs have html alone",
    )
    reported.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="test/NAME",
        help="of a study: what to compare; may be repeated",
    )

    studied = add(
        "study",
        _study,
        "run tasks x methods x seeds from one YAML file, and compare them",
        epilog="Finished runs are skipped, interrupted ones go on. The form of the file: "
        "docs/studies.md; an example: configs/studies/cheap_fine_tuning.yaml.",
    )
    studied.add_argument("file", metavar="STUDY.yaml", help="or a study of the suite by name")
    studied.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once; default 1")
    studied.add_argument(
        "--dry-run", action="store_true", help="check and list the runs, with their states"
    )

    new = add(
        "new",
        _new,
        "write the files of a new system, with a test that fails until it is filled in,"
        " or a schedule of freezing or a criterion of early exits of your own",
    )
    new.add_argument("domain", help="a domain, `schedule` or `criterion`")
    new.add_argument("name")

    for command in domain_commands.COMMANDS:  # they are run before anything is parsed here
        if len(command.words) == 1:
            commands.add_parser(command.words[0], help=command.about)
    add("doctor", _doctor, "check this installation")
    completion = add("completion", _completion, "print a shell completion script")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser, fit


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours, with the nearest right word."""

    def error(self, message: str) -> NoReturn:
        from core.errors import UserError

        raise UserError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        from core.errors import UserError

        if action.choices is not None and value not in action.choices:
            from pleiad.experiments import nearest

            known = [str(choice) for choice in action.choices]
            close = nearest(str(value), known)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
            kind = "" if action.dest in ("what", "verb") else f"{action.dest} "
            raise UserError(f"no {kind}{value!r}; {hint} (see `{self.prog} --help`)")


def _fit(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import experiments

    if known.help:
        _print(_help(known, rest))
        return 0
    name = _name(known)
    experiment = None
    if known.ckpt_path is None or experiments.is_run(name):
        experiment = experiments.resolve(name, rest, known.trust)  # a mistake in a key ends here
    from pleiad import run as runs

    quiet()
    options = _run_options(known)
    if known.print_config:
        _print(runs.print_config(name, rest, options).rstrip())
        return 0
    if known.estimate:
        from pleiad import estimate

        _console().print(estimate.table(estimate.estimate(name, rest, options, _print)))
        return 0
    if experiment is not None:
        _print(f"{experiment.name} ({experiment.source})")
    try:
        folder = runs.fit(name, rest, options, _print)
    except SystemExit:
        begun = os.environ.get("PLEIAD_RUN", name)
        sys.stderr.write(f"stopped and saved; go on by: pleiad fit {begun} --ckpt_path last\n")
        raise
    if folder is None:
        _print("the dry run went through; nothing was kept")
        return 0
    from pleiad import report
    from pleiad.runs import is_first_process

    if is_first_process():
        _console().print(report.table([report.load_run(folder)]))
        for picture in sorted((folder / "pictures").glob("*.png")):
            _print(f"picture  {picture}")
        _print(f"report   {folder / 'report.html'}")
        if (folder / "model").is_dir():
            _print(f"model    {folder / 'model'}")
    return 0


def _evaluate(known: argparse.Namespace, rest: list[str]) -> int:
    if known.help:
        _print(_help(known, rest))
        return 0
    name = _name(known)
    from pleiad import experiments

    if not Path(name).is_dir() or experiments.is_run(name):
        experiments.load(name)
    from pleiad import run as runs
    from pleiad.runs import is_first_process

    quiet()
    options = _run_options(known)
    split = "test" if known.command == "test" else "validate"
    metrics = runs.evaluate(name, rest, options, split)
    for key, value in sorted(metrics.items() if is_first_process() else ()):
        _print(f"{key:<12} {value:.6g}")
    return 0


def _run_options(known: argparse.Namespace) -> Any:
    from pleiad.run import Options

    return Options(
        known.run, known.ckpt_path, known.precision, tuple(known.trust), known.checkpoint
    )


def _predict(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import experiments, runs

    model = Path(known.name)
    if not model.is_dir():
        experiment = experiments.load(known.name).name
        found = runs.newest(experiment, finished=True)
        if found is None:
            from core.errors import UserError

            raise UserError(f"{known.name}: no finished run; `pleiad fit {known.name}` makes one")
        model = found
    from pleiad.predict import predict

    outcome = predict(model, known.input, known.output, known.plot, tuple(known.trust), rest)
    _print(outcome.text)
    for fault in outcome.faults:
        sys.stderr.write(f"pleiad: failed: {fault}\n")
    if outcome.failed > len(outcome.faults):
        rest_of = outcome.failed - len(outcome.faults)
        sys.stderr.write(f"pleiad: and {rest_of:,} more, listed in {known.output}/manifest.csv\n")
    return 2 if outcome.failed else 0


def _exits(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import exits
    from pleiad.run import Options

    quiet()
    options = Options(precision=known.precision, trust=tuple(known.trust))
    found = exits.compare(known.name, rest, options, known.beta, known.soft, known.output)
    _console().print(exits.tables(found))
    if known.output is not None:
        _print(f"model    {known.output}")
    return 0


def _list(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import listing

    shown = listing.render(
        known.what, known.format, domain=known.domain, task=known.task, status=known.status
    )
    if isinstance(shown, str):
        _print(shown)
    else:
        _console().print(shown)
    return 0


def _import(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import registry

    registry.system(known.system)  # a mistake in the name ends here
    from pleiad.importing import import_weights

    told = import_weights(known.system, known.checkpoint, known.output, known.config, known.licence)
    _print("\n".join(told))
    return 0


def _show(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import show

    told = show.show(known.name, known.picture, known.domain)
    if isinstance(told, str):
        _print(told)
    else:
        _console().print(told)
    return 0


def _data(known: argparse.Namespace, rest: list[str]) -> int:
    import data

    verbs: dict[str, Callable[[str], Path]] = {
        "fetch": data.fetch,
        "verify": data.verify,
        "where": data.where,
    }
    _print(str(verbs[known.verb](known.name)))
    return 0


def _report(known: argparse.Namespace, rest: list[str]) -> int:
    from core.errors import UserError
    from pleiad import study

    if any(study.is_study(folder) for folder in known.runs):
        if len(known.runs) > 1:
            raise UserError("report: give one study alone, or runs")
        return _report_study(known.runs[0], known.format, known.output, known.metric)
    if known.format != "html" or known.metric:
        raise UserError("report: --format and --metric are for the folder of a study")
    from pleiad import report

    runs = [report.load_run(folder) for folder in known.runs]
    output = known.output or (
        known.runs[0] / "report.html" if len(known.runs) == 1 else Path("report.html")
    )
    path = report.write_report(known.runs, output)
    _console().print(report.table(runs))
    for run_folder in known.runs:
        for picture in sorted((run_folder / "pictures").glob("*.png")):
            _print(f"picture  {picture}")
    _print(f"report   {path}")
    return 0


def _report_study(
    folder: Path, form: str, output: Path | None = None, metrics: Sequence[str] = ()
) -> int:
    from pleiad import study_formats, study_report

    found = study_report.load(folder, metrics)
    written = study_formats.write(found, form, output)
    _console().print(study_formats.table(found))
    for path in written:
        _print(f"written  {path}")
    return 0


def _study(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import study_file, study_runs, trust

    found = study_file.read(study_file.find(known.file))
    trust.allow(list({module: None for cell in found.cells() for module in cell.trust}))
    if known.dry_run:
        _console().print(study_runs.look(found, _print))
        return 0
    outcome = study_runs.run(found, known.jobs, _print)
    if outcome.stopped is not None:
        sys.stderr.write(f"stopped; go on by: pleiad study {known.file}\n")
        return outcome.status
    for failure in outcome.failures:
        sys.stderr.write(f"pleiad: failed: {failure.run.name}: {failure.told}\n")
    if any(found.folder.glob("*/*/*/results.json")):
        _report_study(found.folder, "html")
    return outcome.status


def _new(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import new

    for path in new.create(known.domain, known.name, Path.cwd()):
        _print(str(path))
    _print(new.next_steps(known.domain, known.name))
    return 0


def _doctor(known: argparse.Namespace, rest: list[str]) -> int:
    from pleiad import doctor

    checks = doctor.checks()
    _console().print(doctor.table(checks))
    return 0 if all(check.ok for check in checks) else 1


def _completion(known: argparse.Namespace, rest: list[str]) -> int:
    import argcomplete

    _print(argcomplete.shellcode(["pleiad"], shell=known.shell))
    return 0


def _completed(action: argparse.Action) -> None:
    """Let argcomplete offer the experiments for an argument."""

    def names(**_: Any) -> list[str]:
        from pleiad import experiments

        return experiments.names()

    action.completer = names  # type: ignore[attr-defined]


def _complete(parser: argparse.ArgumentParser, fit: argparse.ArgumentParser) -> NoReturn:
    """Complete commands, experiments and their keys from the static index."""
    import argcomplete

    from pleiad import experiments

    words = os.environ.get("COMP_LINE", "").split()
    named = next((word for word in words if word in experiments.names()), None)
    if named:
        config = experiments.load(named).config
        experiments.expand(config)
        for key in experiments.keys(config):
            fit.add_argument(f"--{key}", help=argparse.SUPPRESS)
    argcomplete.autocomplete(parser, always_complete_options=False)
    sys.exit(0)


def _help(known: argparse.Namespace, rest: Sequence[str]) -> str:
    """Show the keys of a command, and of an experiment where one is named."""
    from pleiad import domain_commands, experiments

    lines = [
        f"usage: pleiad {known.command} NAME [--key=value ...]",
        "",
        "NAME is an experiment (`pleiad list experiments`), a YAML file or a run folder.",
        "",
        "keys of the command:",
        *(f"  --{key:<28} {text}" for key, text in experiments.COMMAND_KEYS.items()),
        *([f"  --{'estimate':<28} {ESTIMATE}"] if known.command == "fit" else []),
        f"  --{'print_config':<28} print the whole resolved configuration and stop",
        f"  --{'debug':<28} show the traceback of an error",
        *(
            f"  {command.words[1]:<30} {command.about}"
            for command in domain_commands.COMMANDS
            if command.words[0] == known.command
        ),
    ]
    if not known.name:
        return "\n".join(
            [*lines, "", f"`pleiad {known.command} NAME --help` lists the keys of NAME."]
        )
    experiment = experiments.load(known.name)
    config = experiment.config
    experiments.expand(config)
    given = dict(experiments.flat(config))
    lines += ["", f"keys of {experiment.name} (the most used; all of --trainer.* is Lightning's):"]
    shown = ("trainer.max_epochs", "trainer.devices", "trainer.accelerator", "trainer.callbacks")
    for key in experiments.keys(config):
        if key.startswith("trainer.") and key not in shown:
            continue
        about = experiments.describe(config, key)
        value = given.get(key, about.get("default"))
        default = f" [{value}]" if value is not None else ""
        own = ", ".join(map(str, experiment.settings.get(key, ())))
        default += f" (the recipe has settings of its own at {own})" if own else ""
        lines.append(f"  --{key:<28} {about.get('help', '')}{default}".rstrip())
    return "\n".join(lines)


def _name(known: argparse.Namespace) -> str:
    from core.errors import UserError

    if not known.name:
        raise UserError(f"pleiad {known.command} needs a name; see `pleiad list experiments`")
    name: str = known.name
    return name


def _allow(known: argparse.Namespace) -> None:
    """Let configurations name modules of the user's, from the current folder or a run's copy."""
    from pleiad import trust
    from pleiad.runs import is_first_process

    for change in trust.allow(known.trust, _asked_run(known)):
        if known.command == "fit" and known.ckpt_path is not None:
            from core.errors import UserError

            raise UserError(f"{change}; a run goes on with what it began with, or start a new one")
        if is_first_process():
            sys.stderr.write(f"pleiad: warning: {change}; that of the current folder is used\n")


def _asked_run(known: argparse.Namespace) -> Path | None:
    """Find the run folder whose copies of trusted modules count, where a run is asked for."""
    from pleiad import experiments, runs, trust

    name = getattr(known, "checkpoint", None) or known.name
    finished = known.command != "fit"
    if name in experiments.names() and (finished or known.ckpt_path is not None):
        return runs.newest(name, finished)
    return trust.run_of(name)


def quiet() -> None:
    """Keep the terminal for what the user asked for."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (".*many workers.*", ".*treespec, LeafSpec.*", ".*the logging interval.*"):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _fail(error: Exception, debug: bool, status: int) -> int:
    if debug:
        raise error
    text = " ".join(str(error).split())
    sys.stderr.write(f"pleiad: {text}\n")
    return status


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"pleiad {version('pleiad')}"
    except PackageNotFoundError:
        return "pleiad (not installed)"
