"""`python -m hf_transfer_plugin` and the console script."""

from hf_transfer_plugin.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
