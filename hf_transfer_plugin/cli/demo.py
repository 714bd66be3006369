"""`hf-transfer-plugin demo`."""

import shlex
from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for


def run(argv: Sequence[str]) -> int:
    """
    Serves the demo of a run here, or writes the folder of its Space.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.

    Raises:
        ValueError: If `--port` is no port, or options do not go together.
    """
    parser = parser_for(
        "demo",
        "Serves a page to try the model of a run on this machine, until Ctrl-C.",
        "hf-transfer-plugin demo quickstart-run --port 7860",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--no_browser", action="store_true", help="do not open the page in a browser")
    parser.add_argument("--output_dir", help="only write the folder of the Space there; serve nothing")
    parser.add_argument(
        "--model", help="with --output_dir: Hub id of the trained model (default: named by base and data)"
    )
    parser.add_argument(
        "--base",
        metavar="FOLDER_OR_ID",
        help="folder or Hub id of an adapter's base (default: the one that the adapter names)",
    )
    options = parser.parse_args(argv)
    if options.port is not None and not 0 < options.port < 65536:
        raise ValueError(f"`--port` must lie between 1 and 65535, but got {options.port}.")
    if options.model and not options.output_dir:
        raise ValueError("`--model` names the model in a written Space; give `--output_dir`, too.")
    if options.base and options.output_dir:
        raise ValueError(
            "`--base` is where a page served here finds the base, and a Space takes it from the adapter. Leave "
            "`--output_dir` out, or give `--base` to the app.py that is written."
        )
    from hf_transfer_plugin.hub import model_name, render_space, run_demo
    from hf_transfer_plugin.record import TransferRecord

    if options.output_dir:
        record = TransferRecord.load(options.run)
        folder = render_space(record, options.output_dir, options.model or model_name(record))
        print(f"The Space is in {folder}. Try it:")
        print(f"  python {shlex.quote(str(folder / 'app.py'))} --model {shlex.quote(options.run)}")
        return 0
    return run_demo(options.run, port=options.port, open_browser=not options.no_browser, base=options.base)
