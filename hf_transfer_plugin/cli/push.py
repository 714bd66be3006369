"""`hf-transfer-plugin push`."""

from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for


def run(argv: Sequence[str]) -> int:
    """
    Pushes a run, and perhaps its demo, to the Hub.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "push",
        "Pushes weights, config, tokenizer, card, record and plots of a run to the Hub in one commit, and nothing "
        "else of its folder. Log in first with `hf auth login`, or set HF_TOKEN.",
        "hf-transfer-plugin push quickstart-run jane/movie-reviews --space",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("repo", metavar="USER/NAME", help="repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; made if it does not exist")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--space", action="store_true", help="also push a Gradio demo, as the Space USER/NAME")
    parser.add_argument("--space_hardware", help="hardware of a new Space, e.g. zero-a10g")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.hub import check_space, push_model, push_space

    if options.space:
        check_space(options.run)
    pushed = push_model(
        options.run, options.repo, private=options.private, revision=options.revision, create_pr=options.create_pr
    )
    if pushed.left_out:
        print(f"Not pushed: {', '.join(pushed.left_out)}.")
    print(f"The model is at {pushed.pull_request or pushed.url} ({len(pushed.files)} files, read back).")
    if options.space:
        space = push_space(
            options.run, options.repo, options.repo, private=options.private, hardware=options.space_hardware
        )
        print(f"The demo is at {space.url}; it starts in some minutes.")
        if options.private:
            print(
                "A private model's Space needs a token: add the secret HF_TOKEN (role read) in the Space's settings."
            )
    return 0
