"""Define the arguments of all commands; the module of a command is imported when it runs."""

import argparse
from functools import partial

import esdmon
from esdmon.cli.arguments import Parser, number

LEAST_EIGENVALUES = 10
"""`MIN_EIGENVALUES` of `esdmon.weights`, whose import would load torch."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="esdmon", description="Monitor the spectra of a network's weights.")
    parser.add_argument("--version", action="version", version=esdmon.__version__)
    parser.set_defaults(run=partial(_help, parser))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_demo(
        commands.add_parser("demo", help="train a small network with a fault in the middle, and show its spectra live")
    )
    _add_scan(commands.add_parser("scan", help="analyse the spectra of a checkpoint, or compare several"))
    _add_alerts(
        commands.add_parser("alerts", help="explain alert rules, validate a TOML file, or replay a finished run")
    )
    _add_report(commands.add_parser("report", help="write phases, spectra and alerts of runs to one HTML file"))
    _add_tail(commands.add_parser("tail", help="follow a run in this terminal: its alerts and its layers"))
    doctor = commands.add_parser("doctor", help="check the installation; print versions, devices and plugins")
    doctor.description = (
        "Print versions of packages, devices, precision switches and plugins, and run a self-check of some seconds: "
        "readings of known spectra, a watched training, and the files that it writes. Put the output into a bug report."
    )
    doctor.epilog = (
        "Exit status: 0, or 1 if a check has failed, a package is too old, or a plugin could not be used. For a "
        "machine with a GPU there is a longer test: python -m esdmon.selftest."
    )
    doctor.set_defaults(run=_doctor)
    listing = commands.add_parser("plugins", help="list plugins, with version and hooks")
    listing.description = "List the installed plugins with version and hooks. For a plugin that is not used, say why."
    listing.epilog = "Exit status: 0, or 1 if a plugin could not be used."
    listing.add_argument("--json", action="store_true", help="print one JSON object for each plugin")
    listing.set_defaults(run=_plugins)
    return parser


def _help(parser: argparse.ArgumentParser, _options: argparse.Namespace) -> int:
    parser.print_help()
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a small network on scikit-learn's digits, watched by esdmon. In the middle of the run weight decay is "
        "set far too high. Alerts fire, and the weights are restored. At the end print what happened, and where the "
        "results are."
    )
    default = "(default: %(default)s)"
    parser.add_argument(
        "--batch-size",
        type=number(int, 1, 1500),
        default=30,
        metavar="N",
        help=f"examples per step, 1 to 1500 {default}",
    )
    parser.add_argument("--lr", type=number(float, 0, 10), default=0.02, help=f"learning rate of SGD {default}")
    parser.add_argument(
        "--epochs", type=number(int, 1, 10_000), default=32, metavar="N", help=f"passes over the digits {default}"
    )
    parser.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help=f"seed of the random numbers {default}"
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=f"folder for the data {default}")
    parser.add_argument("--healthy", action="store_true", help="train without the fault, so that no alert fires")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from esdmon.cli import demo  # noqa: PLC0415 -- loads torch; `esdmon --help` should not

    settings = demo.DemoOptions(
        batch_size=options.batch_size,
        lr=options.lr,
        epochs=options.epochs,
        seed=options.seed,
        out=options.out,
        healthy=options.healthy,
    )
    demo.run(settings)
    return 0


def _add_scan(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Analyse the weights of a checkpoint, tensor by tensor: a file of torch.save, torch.export, safetensors or "
        "GGUF, a Hugging Face folder, or a torch distributed checkpoint. No code in the checkpoint is executed. Under "
        "torchrun the work is split over the ranks."
    )
    parser.epilog = "Exit status: 0; 1 if a weight is zero, not finite or failed; 2 if nothing could be read."
    parser.add_argument("path", metavar="PATH", help="file or folder")
    parser.add_argument(
        "--layers", nargs="+", metavar="PATTERN", help="read only matching layers, such as '*.q_proj' or '*/head.3'"
    )
    parser.add_argument("--exclude", nargs="+", metavar="PATTERN", default=[], help="skip matching layers")
    parser.add_argument(
        "--max-eigenvalues",
        type=number(int, LEAST_EIGENVALUES, 10**9),
        metavar="N",
        help=f"skip matrices with more eigenvalues; {LEAST_EIGENVALUES} or more, since smaller matrices are not read",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="OTHER",
        default=[],
        help="earlier checkpoints, the oldest first: report the changes from each to the next",
    )
    parser.add_argument("--reference", metavar="OTHER", help="analyse W − W₀, where OTHER is a checkpoint with W₀")
    parser.add_argument("--measures", nargs="+", metavar="NAME", help="names of measures, or 'all'")
    parser.add_argument(
        "--workers",
        type=number(int, 1, 4096),
        metavar="N",
        help="number of processes that read in parallel (default: as many as cores, memory and work allow)",
    )
    parser.add_argument("--exact", action="store_true", help="compute everything in float64")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help="columns of the table or the CSV; names are the keys in --json"
    )
    parser.add_argument("--sort", metavar="NAME", help="sort by a column; layers without a value come last")
    parser.add_argument("--reverse", action="store_true", help="sort in descending order")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print one JSON object")
    form.add_argument(
        "--jsonl",
        dest="form",
        action="store_const",
        const="jsonl",
        help="print the JSONL of a run in which each checkpoint is a step",
    )
    form.add_argument(
        "--csv", dest="form", action="store_const", const="csv", help="print one CSV line for each matrix"
    )
    parser.set_defaults(run=_scan, form="table")


def _scan(options: argparse.Namespace) -> int:
    from esdmon.cli import scan  # noqa: PLC0415 -- loads torch
    from esdmon.weights import Selection  # noqa: PLC0415

    measures = options.measures or "default"
    settings = scan.ScanOptions(
        path=options.path,
        selection=Selection(options.layers, options.exclude, max_eigenvalues=options.max_eigenvalues),
        compare=options.compare,
        reference=options.reference,
        measures="all" if measures == ["all"] else measures,
        precision="exact" if options.exact else "auto",
        form=options.form,
        columns=options.columns,
        sort=options.sort,
        reverse=options.reverse,
        workers=options.workers or "auto",
    )
    return scan.scan(settings)


def _add_alerts(parser: argparse.ArgumentParser) -> None:
    parser.description = "Explain alert rules, validate a TOML file of rules, or replay a finished run."
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="print what a rule checks, why, and its source",
        description="Print for each rule what to do if it fires, what it checks and why, its source and thresholds.",
    )
    explain.add_argument("rules", nargs="*", metavar="RULE", help="names of rules (default: all)")
    explain.set_defaults(run=_alerts_explain)
    check = commands.add_parser(
        "check",
        help="validate a TOML file, and print its rules and actions",
        description="Validate a TOML file of rules, and print its rules with their thresholds, and its actions.",
        epilog="Exit status: 0, or 2 if the file is not valid.",
    )
    check.add_argument("file", metavar="FILE", help="a TOML file for watch(alerts=FILE)")
    check.set_defaults(run=_alerts_check)
    replay = commands.add_parser(
        "replay",
        help="print the alerts that rules would have raised in a run",
        description="Evaluate rules on the readings of a finished run, as during training.",
        epilog="Exit status: 0; 1 if a warning or an error would have fired; 2 if nothing could be read; 3 if a rule "
        "has failed, so that its alerts may be missing.",
    )
    replay.add_argument("run_path", metavar="RUN", help="JSONL file of a run, or its folder")
    replay.add_argument("--alerts", metavar="FILE", help="a TOML file of rules (default: the default rules)")
    replay.add_argument("--json", action="store_true", help="print one JSON object for each alert")
    replay.set_defaults(run=_alerts_replay)


def _alerts_explain(options: argparse.Namespace) -> int:
    from esdmon.cli import alerts  # noqa: PLC0415 -- loads numpy

    alerts.explain(options.rules)
    return 0


def _alerts_check(options: argparse.Namespace) -> int:
    from esdmon.cli import alerts  # noqa: PLC0415

    alerts.check(options.file)
    return 0


def _alerts_replay(options: argparse.Namespace) -> int:
    from esdmon.cli import alerts  # noqa: PLC0415

    return alerts.show(options.run_path, options.alerts, as_json=options.json)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one self-contained HTML file of runs, of at most 5 MB. It has the same views as TensorBoard's tab ESD, "
        "and contains the data. It loads no other file. Without scripts it still shows the map, the alerts and tables."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="JSONL file of a run, or its folder")
    parser.add_argument(
        "-o", "--out", default="report.html", metavar="FILE", help="file to write, or replace (default: %(default)s)"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from esdmon.cli import report  # noqa: PLC0415 -- loads numpy

    report.write(options.runs, options.out)
    return 0


def _add_tail(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the alerts of a run and the table of its latest readings, and follow the run until Ctrl-C. If the output "
        "is not a terminal, print once and exit."
    )
    parser.add_argument("run_path", metavar="RUN", help="JSONL file of a run, or its folder")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.set_defaults(run=_tail)


def _tail(options: argparse.Namespace) -> int:
    from esdmon.cli import tail  # noqa: PLC0415 -- loads numpy

    tail.show(options.run_path, once=options.once)
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    from esdmon.cli import doctor  # noqa: PLC0415 -- loads torch

    return doctor.show()


def _plugins(options: argparse.Namespace) -> int:
    from esdmon.cli import plugins  # noqa: PLC0415 -- loads numpy

    return plugins.show(as_json=options.json)
