"""The command that explains a run: `python -m ddpo_fair.report runs/mech_eng`.

Writes one HTML page that needs nothing but itself, and its figures as SVG and PNG.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ddpo_fair import command_line, process
from ddpo_fair.errors import UserError

USAGE = """\
python -m ddpo_fair.report RUN [RUN ...] [--output=PAGE.html]

Explains one run, or several side by side, in one HTML page. Runs that differ only in
their seed count as one experiment. RUN is a run's folder, e.g. runs/mech_eng.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return process.run(
        "ddpo_fair.report", lambda: explain(arguments), "the page was not written"
    )


def explain(arguments: Sequence[str]) -> None:
    """Writes the page of the runs that a command line names, and prints its path.

    A UserError for what the user can fix.
    """
    values = flags.FlagValues()
    where = "The page; report.html in the run's folder, or in that which holds all runs"
    flags.DEFINE_string("output", None, where, flag_values=values)
    rest, problems = command_line.read(values, arguments, USAGE)
    runs = [one for one in rest if not one.startswith("-")]
    problems += command_line.strangers([one for one in rest if one not in runs], values)
    if not runs:
        problems.append("Which run? Give its folder, e.g. runs/mech_eng.")
    if problems:
        raise UserError(" ".join(problems))
    from ddpo_fair.report import page  # matplotlib: after the help

    print(page.write(runs, values.output))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
