"""``ptt`` and ``python -m ptt``. Monkey-patches nothing: what needs gevent's patches is a process of its own."""

from __future__ import annotations

from ptt.cli.main import main as command


def main() -> None:
    """Run the command and exit with its code."""
    command(prog_name="ptt")


if __name__ == "__main__":
    main()
