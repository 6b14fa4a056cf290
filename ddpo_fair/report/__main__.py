"""The command that explains a run: `python -m ddpo_fair.report runs/mech_eng`.

Writes one HTML page that needs nothing but itself, and its figures as SVG and PNG.
"""

import sys
from collections.abc import Sequence

from ddpo_fair import errors, flags
from ddpo_fair.errors import UserError

BAD_INPUT = 2  # exit status


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for what the user can mend."""
    parser = flags.Parser(
        prog="python -m ddpo_fair.report",
        description="Explain one run, or several side by side, in one HTML page."
        " Runs that differ only in their seed are judged together.",
        allow_abbrev=False,
    )
    parser.add_argument("run", nargs="+", help="folder of a run, e.g. runs/mech_eng")
    parser.add_argument(
        "--output",
        help="the page; by default report.html in the run's folder, or, for several"
        " runs, in the folder that holds them",
    )
    try:
        given = parser.parse_args(arguments)
        from ddpo_fair.report import writer  # matplotlib: after the help

        page = writer.write(given.run, given.output)
    except UserError as error:
        print(f"ddpo_fair.report: {errors.paragraph(error)}", file=sys.stderr)
        return BAD_INPUT
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
