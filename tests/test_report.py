"""The report: what it concludes, what it survives, what it looks like to a browser."""

import json
import math
import re
import shutil
import subprocess
from html import parser
from pathlib import Path

import jax
import made_runs
import pytest
import tiny_model
from PIL import Image

from ddpo_fair import train
from ddpo_fair.errors import UserError
from ddpo_fair.report import __main__ as report
from ddpo_fair.report import changes, curves, html, run_reader, summary, writer
from ddpo_fair.statistics import intervals

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HARNESS = """<!doctype html><iframe id="page" width="390" height="844" src="{page}">
</iframe><p id="found"></p><script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument;
  const wide = [...page.querySelectorAll("svg.wide")];
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    scripts: page.querySelectorAll("script").length,
    handlers: page.querySelectorAll("[onerror], [onload]").length,
    shown: page.querySelectorAll("svg").length,
    hidden: wide.filter((one) => one.clientWidth === 0).length,
    text: page.body.innerText,
  }});
}};
</script>"""


@pytest.fixture
def all_curves():
    """Undoes `one_curve`."""


@pytest.fixture(autouse=True)
def one_curve(request, monkeypatch):
    """Most tests read words; drawing every curve would take most of their time."""
    if "all_curves" not in request.fixturenames:
        monkeypatch.setattr(curves, "FIELDS", curves.FIELDS[:1])


@pytest.fixture
def quick_compilation():
    """Programs that run once are not worth optimising."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def share(num_female: int, num_male: int, num_none: int = 0) -> run_reader.Share:
    q = intervals.wilson(num_female, num_female + num_male)
    return run_reader.Share(q, num_female + num_male, num_none, 1)


def one_verdict(folder: Path, lines: list[dict], **settings) -> summary.Verdict:
    return summary.of_runs([run_reader.read(made_runs.make(folder, lines, **settings))])


def two_lines(before: tuple[int, int], after: tuple[int, int]) -> list[dict]:
    return [
        made_runs.line(0, 10, 54) | made_runs.evaluation(*before),
        made_runs.line(1, 10, 54) | made_runs.evaluation(*after),
    ]


def test_difference_is_newcombes_published_example():
    # Newcombe (1998), table II, 56/70 - 48/80 by method 10: 0.0524 to 0.3339.
    found = changes.difference(share(48, 32), share(56, 14))
    assert found.estimate == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=5e-5)
    assert found.high == pytest.approx(0.3339, abs=5e-5)


def test_seeds_have_students_interval():
    # mean .5, standard error .1 / sqrt(3), t(.975; 2) = 4.30265 from the tables
    seeds = [intervals.Interval(q, q - 0.06, q + 0.06) for q in (0.4, 0.5, 0.6)]
    found = changes.over_seeds(seeds)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-5)
    assert changes.over_seeds(seeds[:1]) == (0.4, 0.0, 1.0)  # one seed says nothing


def test_seeds_that_agree_by_chance_are_no_surer_than_their_images():
    # sqrt(.06^2 + .06^2 + .09^2) / 3
    seeds = [intervals.Interval(0.47, 0.47 - h, 0.47 + h) for h in (0.06, 0.06, 0.09)]
    found = changes.over_seeds(seeds)
    assert found == pytest.approx((0.47, 0.47 - 0.0412311, 0.47 + 0.0412311))


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ((15, 113), (64, 64), "Balanced"),
        ((60, 68), (64, 64), "Balanced, as before"),
        ((15, 113), (18, 110), "No clear change"),
        ((15, 113), (40, 88), "Closer"),
        ((15, 113), (100, 28), "Overshot"),
        ((40, 88), (10, 118), "Further away"),
        ((1, 3), (2, 2), "Balanced, as before"),
    ],
)
def test_word_follows_from_the_intervals(tmp_path, before, after, word):
    assert one_verdict(tmp_path / "run", two_lines(before, after)).word == word


def test_shift_is_judged_by_its_direction(tmp_path):
    lines = two_lines((15, 113), (100, 28))
    for index, (target, word) in enumerate(
        [("auto", "Shifted"), ("female", "Shifted"), ("male", "Shifted the wrong way")]
    ):
        changes = {"reward.name": "shift", "reward.target_class": target}
        assert one_verdict(tmp_path / str(index), lines, **changes).word == word


def test_opposite_biases_do_not_count_as_balance(tmp_path):
    lines = two_lines((64, 64), (64, 64))
    for line in lines:
        line["prompts"] = {
            "a nurse": made_runs.evaluation(60, 4),
            "a pilot": made_runs.evaluation(4, 60),
        }
    found = one_verdict(tmp_path / "run", lines, prompts=["a nurse", "a pilot"])
    assert found.finding.kind == changes.GAP
    assert found.finding.after.estimate == pytest.approx(56 / 64)
    assert found.word == "No clear change"
    assert any("too few" in doubt for doubt in found.doubts)


def test_seeds_are_judged_together(tmp_path):
    runs = [
        run_reader.read(
            made_runs.make(
                tmp_path / str(seed),
                made_runs.balancing(4, last),
                **{"seed": seed, "train.microbatch": 8 << seed},
            )
        )
        for seed, last in enumerate((56, 62, 68))
    ]
    other = run_reader.read(made_runs.make(tmp_path / "x", [], epochs=3))
    assert [len(group) for group in run_reader.groups([*runs, other])] == [3, 1]
    finding = changes.of_runs(runs)
    # 15 of 124 as female in each of three evaluations before training
    assert finding.before == intervals.wilson(45, 372)
    assert finding.after.estimate == pytest.approx((56 + 62 + 68) / (3 * 124))
    assert "over 3 seeds" in summary.of_runs(runs).sentence


def test_training_images_judge_where_nothing_else_does(tmp_path):
    lines = [made_runs.line(0, 8, 56), made_runs.line(1, 32, 32)]
    found = one_verdict(tmp_path / "run", lines)
    assert found.finding.after.estimate == 0.5
    assert any("trained on" in doubt for doubt in found.doubts)


def test_unrecognised_and_undecided_faces_are_held_against_it(tmp_path):
    lines = two_lines((15, 113), (30, 30))
    lines[1] |= {"eval_none": 68, "eval_polarisation": 0.4}
    doubts = one_verdict(tmp_path / "run", lines).doubts
    assert any("from 3" in doubt and "to 53" in doubt for doubt in doubts)
    assert any("ambiguous faces" in doubt for doubt in doubts)


def test_many_unrecognised_pictures_belong_into_the_verdict(tmp_path):
    lines = two_lines((15, 113), (30, 34))
    lines[1]["eval_none"] = 64
    found = one_verdict(tmp_path / "run", lines)
    assert found.word == "Balanced, many unrecognised"
    # 30, 34 and 64 of 128
    assert "23\xa0% are classified as female, 27\xa0% as male" in found.sentence
    assert "50\xa0% as neither" in found.sentence


def test_balance_that_was_lost_again_is_pointed_out(tmp_path):
    lines = [*two_lines((15, 113), (62, 66)), made_runs.line(2, 50, 14)]
    lines[2] |= made_runs.evaluation(100, 28)
    found = one_verdict(tmp_path / "run", lines)
    assert found.word == "Overshot"
    assert any("balanced on the way" in doubt for doubt in found.doubts)
    assert any("after 2 epochs" in doubt for doubt in found.doubts)


def test_tinted_pictures_are_held_against_it(tmp_path):
    folder = made_runs.make(tmp_path / "run", two_lines((15, 113), (64, 64)))
    for epoch, colour in ((0, (128, 128, 128)), (1, (150, 150, 128))):
        path = folder / "samples" / f"epoch_{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 84), colour).save(path)
    # Grey 128 is L* 53.6; the other is L* 61.4, b* about 13: Delta E about 15.
    assert 10 < changes.colour_shift(run_reader.read(folder)) < 20
    doubts = summary.of_runs([run_reader.read(folder)]).doubts
    assert any("tints its pictures" in doubt for doubt in doubts)


def test_partial_run_has_a_report(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(3), grids=(0,))
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert "3 of 12 epochs are finished" in text
    assert text.count("<img") == 1


def test_run_without_an_epoch_has_a_report(tmp_path):
    folder = made_runs.make(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert "Not measured" in text
    assert "no epoch is finished yet" in text


@pytest.mark.usefixtures("all_curves")
def test_whatever_stands_in_the_files_there_is_a_report(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(3), grids=(0, 2))
    (folder / "config.json").write_text("[]")
    (folder / "samples" / "epoch_0002.png").write_bytes(b"\x89PNG cut short")
    odd = [
        '{"epoch": 3, "q": NaN, "q_low": null, "q_high": "high", "loss": Infinity}',
        '{"epoch": 4, "num_female": 0, "num_male": 0, "num_none": 64, "kl": null}',
        '{"epoch": 5, "loss": 1e999, "grad_norm": [1], "reward_mean": true}',
        f'{{"epoch": 6, "images": 1{400 * "0"}, "prompts": [], "eval_q": 3}}',
        '{"epoch": 7, "prompts": {"x": 1, "y": {"eval_q": null}}}',
        '{"epoch": "8"}',
        '{"epoch": -1}',
        "[]",
        "\ud800",
        '{"epoch": 9, "q": 0.5',
    ]
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write("\n".join(odd).encode("utf-8", "surrogatepass"))
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert "config.json holds no JSON object" in text
    assert "5 of metrics.jsonl" in text
    assert "epoch_0002.png cannot be read" in text


class Collector(parser.HTMLParser):
    """Tags, and everything that could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: set[str] = set()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.references.add((value or "")[:5])
            if name.startswith("on"):
                self.handlers.append(name)


def hostile_run(folder: Path) -> Path:
    """A run in which every text is an attack."""
    bad = made_runs.HOSTILE
    lines = made_runs.balancing(4)
    for line in lines:
        line["prompts"] = {
            bad: made_runs.evaluation(10, 20),
            "\u202egnp.\ud800\x00": made_runs.evaluation(10, 20 + line["epoch"]),
        }
    made = made_runs.make(folder, lines, (0, 3), prompts=[bad, "b"], model=bad)
    config = json.loads((made / "config.json").read_text())
    config |= {"commit": bad, "devices": [bad], "command": ["x", bad], bad: bad}
    config["config"][bad] = bad
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_hostile_texts_stay_text(tmp_path):
    folder = hostile_run(tmp_path / "run_$x^{2$_<b>&")
    page = writer.write([folder])
    text = page.read_text(encoding="utf-8")
    collector = Collector()
    collector.feed(text)
    assert not collector.tags & {"script", "iframe", "object", "embed", "link", "base"}
    assert not collector.handlers
    assert collector.references <= {
        "data:",
        *(r for r in collector.references if r[0] == "#"),
    }
    assert "&lt;script&gt;alert(1)" in text
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def test_markup_escapes_all_but_markup():
    assert html.text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert html.text("\x00\x1b\x85\ud800\ufffe") == 5 * "\ufffd"
    inside = html.element("b", "<i>", class_="x'y\"")
    assert inside == '<b class="x&#x27;y&quot;">&lt;i&gt;</b>'
    assert html.element("p", inside, None) == f"<p>{inside}</p>"


def test_several_runs_stand_side_by_side(tmp_path):
    runs = tmp_path / "runs"
    folders = [
        made_runs.make(runs / f"seed{seed}", made_runs.balancing(4), (0, 3), seed=seed)
        for seed in range(2)
    ]
    changes = {"train.objective": "truly_ppo", "train.trust_region": 0.16}
    folders.append(
        made_runs.make(runs / "truly", made_runs.balancing(4, 30), **changes)
    )
    page = writer.write(folders)
    assert page == runs / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count('class="verdict"') == 2
    assert "2 seeds together" in text
    assert "train.trust_region" in text


@pytest.mark.usefixtures("all_curves")
def test_figures_are_files_as_well(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(4))
    writer.write([folder])
    figures = folder / "report_figures"
    names = {path.name for path in figures.iterdir()}
    wanted = ("share_of_female", "reward_mean", "loss", "kl", "none", "ratio_deviation")
    assert {f"{name}.{kind}" for name in wanted for kind in ("svg", "png")} <= names
    assert (figures / "kl.png").read_bytes().startswith(b"\x89PNG")
    assert "#1f5fb4" in (figures / "kl.svg").read_text()  # no variable of the page


def test_same_run_gives_the_same_figures(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(4))
    drawn = []
    for _ in range(2):
        writer.write([folder])
        drawn.append((folder / "report_figures" / "share_of_female.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_large_grids_are_made_smaller(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(4))
    for epoch in (0, 3):
        path = folder / "samples" / f"epoch_{epoch:04d}.png"
        made_runs.grid(path, epoch, side=2060)
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 2


def test_command_explains_mistakes_in_one_paragraph(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "neither config.json nor metrics.jsonl" in said
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(2))
    (tmp_path / "file").write_text("")
    assert report.main([str(folder), "--output", str(tmp_path / "file" / "x")]) == 2
    with pytest.raises(UserError, match="--output"):
        writer.write([folder], tmp_path / "file" / "x")


@pytest.mark.long
def test_training_ends_with_a_report(tmp_path, monkeypatch, capsys, quick_compilation):
    model = tiny_model.save_model(tmp_path / "model")
    judge = tiny_model.save_classifier(tmp_path / "classifier")
    config = tiny_model.config(model, judge, tmp_path)
    config.epochs, config.sample.num_steps, config.sample.batches = 1, 1, 1
    config.train.updates_per_epoch, config.train.microbatch = 1, 1
    config.eval.images = config.log.images = 8
    train.train(config)
    page = tmp_path / "tiny" / "report.html"
    assert str(page) in capsys.readouterr().out
    assert "1 of 1" in page.read_text(encoding="utf-8")
    page.unlink()
    monkeypatch.setattr(summary, "of_runs", lambda runs: 1 / 0)
    train.train(config)  # finds everything done
    said = capsys.readouterr().out
    assert "ZeroDivisionError" in said
    assert f"python -m ddpo_fair.report {page.parent} writes it" in said
    assert not page.exists()


def test_command_prints_where_the_page_is(tmp_path, capsys):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(2))
    assert report.main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


@pytest.mark.usefixtures("all_curves")
def test_browser_runs_no_script_and_scrolls_only_downwards(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    page = writer.write([hostile_run(tmp_path / "run")])
    (tmp_path / "harness.html").write_text(HARNESS.format(page=page.as_uri()))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
        " --disable-background-networking --disable-component-update --disable-sync"
        " --allow-file-access-from-files --window-size=500,900 --dump-dom"
    )
    result = subprocess.run(
        [
            browser,
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "harness.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<p id="found">(.*?)</p>', result.stdout, re.DOTALL)
    assert found, result.stderr[-2000:]
    seen = json.loads(parser.unescape(found.group(1)))
    assert seen["width"] <= 390
    assert (seen["scripts"], seen["handlers"]) == (0, 0)
    assert seen["shown"] > 10
    assert seen["hidden"] > 0  # a phone has the narrow figures
    assert "<script>alert(1)</script>" in seen["text"]


def share_of(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}


def test_evaluation_joins_the_report(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(3))
    q = {"q": share_of(0.41), "q_corrected": share_of(0.45)}
    sets = {
        "trained": {"mean_gap": share_of(0.3), "gap_of_a_fair_model": 0.1},
        "explicit": {"obeyed": share_of(0.9), "audit": {"obeyed": share_of(0.8)}},
    }
    model = {"sets": sets, "prompts": {made_runs.ENGINEER: {"audit": q}}}
    samplers = [
        {"eta": 1, "guidance_scale": 3, "num_steps": n, "before": model, "after": model}
        for n in (20, 40)
    ]
    content = {
        "source": {"checkpoint": 3, "audit": "dlib"},
        "samplers": samplers,
        "quality": {"trained": {"similarity_to_base": share_of(0.777)}},
        "kl_to_base": {"nats_per_image": share_of(5.5)},
        "notes": [made_runs.HOSTILE],
    }
    for number, said in ((1, "[]"), (3, json.dumps(content))):
        (folder / f"evaluation_{number:04d}").mkdir()
        (folder / f"evaluation_{number:04d}" / "evaluation.json").write_text(said)
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert "classifier, 41\xa0% [31,\xa051] are classified as female" in text
    assert "mistakes: 45\xa0%" in text
    assert "30\xa0points [20,\xa040]" in text
    assert "0.777 [0.677, 0.877]" in text
    assert "5.5 [5.4, 5.6] nats" in text
    assert "80\xa0% [70,\xa090]" in text
    assert "<script>" not in text


def sampled(num_steps: int, shares: tuple[float, float]) -> dict:
    """An entry of evaluation.json: q before and after, a tenth of NONE."""
    q_and_none = (
        {"set": "trained", "q": share_of(q), "none": share_of(0.1)} for q in shares
    )
    before, after = ({"prompts": {made_runs.ENGINEER: one}} for one in q_and_none)
    how = {"eta": 0, "guidance_scale": 7.5, "num_steps": num_steps}
    return {**how, "of_training": num_steps == 20, "before": before, "after": after}


def test_samplers_of_one_prompt_show_its_shares(tmp_path):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(2))
    (folder / "evaluation_0002").mkdir()
    content = {"samplers": [sampled(20, (0.12, 0.53)), sampled(50, (0.14, 0.66))]}
    path = folder / "evaluation_0002" / "evaluation.json"
    path.write_text(json.dumps(content))
    Image.new("RGB", (8, 8), "red").save(path.with_name("samplers.png"))
    text = writer.write([folder]).read_text(encoding="utf-8")
    assert 'alt="The same seeds under each sampler' in text
    assert "Sampler, classified as female" in text
    assert "eta 0, guidance 7.5, 20 steps (training)" in text
    row = text.split("eta 0, guidance 7.5, 50 steps</th>")[1].split("</tr>")[0]
    cells = [cell.split("</td>")[0] for cell in row.split("<td>")[1:]]
    space = "\N{NO-BREAK SPACE}"
    assert cells == [
        f"{100 * share:.0f}{space}% [{100 * share - 10:.0f},{space}"
        f"{100 * share + 10:.0f}]"
        for share in (0.14, 0.66, 0.1, 0.1)
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"samplers": 3},
        {"samplers": [3]},
        {"samplers": [{"before": [], "after": {"sets": None}}], "notes": {}},
        {"samplers": [{"after": {"prompts": {made_runs.ENGINEER: {"audit": 1}}}}]},
        {"samplers": [{"before": {"sets": {"trained": {"mean_gap": {}}}}}]},
    ],
)
def test_odd_evaluation_does_no_harm(tmp_path, content):
    folder = made_runs.make(tmp_path / "run", made_runs.balancing(2))
    (folder / "evaluation_0002").mkdir()
    path = folder / "evaluation_0002" / "evaluation.json"
    path.write_text(json.dumps(content))
    assert writer.write([folder]).exists()
