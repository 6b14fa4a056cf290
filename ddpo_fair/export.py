"""The command that hands a trained model on, in the formats that others read.

python -m ddpo_fair.export --run=runs/mech_eng --output=fair_model [--format=lora|kohya]
"""

import sys
from collections.abc import Sequence

from absl import flags

from ddpo_fair import command_line, process

MOST_EPOCHS = 10**6
FORMATS = ("diffusers", "lora", "kohya")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""

    def work() -> None:
        values = _options(arguments)
        # Seconds of imports, which a wrong flag does not wait for.
        from ddpo_fair import exporting

        folder = exporting.export(
            values.run, values.output, values.format, values.checkpoint
        )
        print(f"Wrote {folder}; its README.md says what it is and how to use it.")

    return process.run("ddpo_fair.export", work, "nothing was written")


def _options(arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, *_ = command_line.definers(values)
    texts("run", None, "Folder of the run")
    texts("output", None, "A new folder to write")
    flags.DEFINE_enum(
        "format",
        "diffusers",
        FORMATS,
        "A whole diffusers folder; LoRA adapters for diffusers and PEFT (lora), or for"
        " ComfyUI and AUTOMATIC1111 (kohya)",
        flag_values=values,
    )
    whole("checkpoint", None, "Epochs done; the newest if not given", 1, MOST_EPOCHS)
    return command_line.options(values, arguments, __doc__, "run", "output")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
