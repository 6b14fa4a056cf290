"""What a person reads of a line of metrics.jsonl, and above a grid."""

import math

from ddpo_fair.loggers import progress

GENDER = {"eval_q": 0.25, "eval_q_low": 0.2, "eval_q_high": 0.3}
TONES = {"eval_shares": {"light": 0.5, "dark": 0.5}, "eval_distance": 0.125}
CELLS = {"eval_shares": {"female light": 1.0}, "eval_distance": 0.375}
OTHERS = {"gender": {}, "skin_tone": TONES, "gender x skin_tone": CELLS}


def test_evaluations_are_said_in_a_line_and_above_a_grid():
    text = progress.evaluation_text(GENDER | {"attributes": OTHERS})
    assert text == (
        "evaluation q 0.25 [0.20, 0.30]  skin_tone: light 0.50, dark 0.50"
        "  gender x skin_tone: distance 0.38"
    )
    line = {"q": math.nan, "q_low": 0.0, "q_high": 1.0, "num_none": 8}
    assert progress.share_texts(line) == ["q undefined (no face recognised)", "none 8"]
    for line, text in (
        (GENDER | {"attributes": OTHERS}, "q 0.25 [0.20, 0.30]"),
        ({"attributes": {"skin_tone": TONES}}, "skin_tone: light 0.50, dark 0.50"),
    ):
        caption = progress.caption(3, ["a nurse"], line)
        assert caption == f"after epoch 3 | {text} | a nurse"
