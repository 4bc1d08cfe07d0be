"""What is known of the runs, laid out as one page: the template's values, and the page's text."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from vit_jax import __version__, configuration
from vit_jax.contracts import UserError
from vit_jax.methods import method_of
from vit_jax.reporting import charts, pictures, repeating, tables
from vit_jax.reporting.looks import Answers, Looks
from vit_jax.reporting.runs import Told
from vit_jax.reporting.times import clock, spent

HERE = Path(__file__).parent
MARK = "<!-- made by vit-jax report -->"  # near the beginning of every page, by which one is known again
SIZES = (
    "patches.size", "resnet.num_layers", "resnet.width_factor", "hidden_size", "transformer.num_layers",
    "transformer.num_heads", "transformer.mlp_dim",
)  # fmt: skip
LABELS = {"classes": "one class a picture", "multilabel": "any number of classes a picture", "regression": "numbers"}


def page(runs: Sequence[Told], looks: Sequence[Looks]) -> str:
    """HTML that needs no other file and no network."""
    curves = charts.curves(runs)
    shown = [run(told, looked, place) for place, (told, looked) in enumerate(zip(runs, looks, strict=True))]
    drawn = curves or any(each["confusion"] for each in shown)
    return _template().render(
        mark=MARK, version=__version__, title=title(runs), made=f"Made on {time.strftime('%-d %B %Y, %H:%M %Z')}",
        style=_file("page.css"), program=_file("page.js"), library=packed_plotly() if drawn else "", charts=curves,
        baseline=", dotted ones the baseline: predicting each patch's mean" if _has_baseline(runs) else "",
        results=tables.results(runs), runs=shown, differing=tables.differing(runs), versions=tables.versions(runs),
    )  # fmt: skip


def title(runs: Sequence[Told]) -> str:
    """One line for the whole page."""
    if len(runs) == 1:
        return f"{model_of(runs[0])} on {dataset_of(runs[0])}"
    sets = list(dict.fromkeys(dataset_of(told) for told in runs))
    return f"{len(runs)} runs on {', '.join(sets[:3])}{' and others' if len(sets) > 3 else ''}"


def run(told: Told, looked: Looks, place: int) -> dict[str, Any]:
    """Everything that the template says of one run."""
    found: dict[str, Any] = {
        "name": told.name, "colour": place % charts.COLOURS, "headline": headline(told), "facts": facts(told),
        "time": times(told), "notes": looked.notes, "looked": "", "changed": tables.changed(told),
        "parameters": told.parameters, "command": "", "no_command": "", "reconstructions": None, "attention": None,
        "confusion": None, "tables": [], "mistakes": [],
    }  # fmt: skip
    try:
        found["command"] = repeating.shell(repeating.command(told))
    except UserError as error:
        found["no_command"] = str(error)
    if looked.step is not None:
        found["looked"] = f"Asked of the checkpoint of step {looked.step:,}."
    if looked.drawing is not None:
        columns = {title: list(each) for title, each in looked.drawing.columns.items()}
        found["reconstructions"] = pictures.rows(columns, looked.drawing.note)
    elif looked.drawn is not None:
        alone = pictures.drawn(looked.drawn, "reconstructions")
        found["reconstructions"] = pictures.Grid([], "As the run itself drew it.", alone)
    if looked.attention is not None:
        maps = {
            name: found if name == "picture" else list(map(pictures.under, looked.attention["picture"], found))
            for name, found in looked.attention.items()
        }
        note = "Attention of the last block, its heads averaged, and rollout through all blocks; bright is most."
        found["attention"] = pictures.rows(maps, note)
    if looked.answers is not None:
        found |= answers(looked.answers, found["looked"])
    return found


def answers(said: Answers, looked: str) -> dict[str, Any]:
    """Of a classifier or regression: which classes it confuses, and where it is most wrong."""
    numbers = {charts.words(name): tables.number(value, name) for name, value in said.metrics.items()}
    metrics = ", ".join(f"{name} {value}" for name, value in numbers.items() if name != "examples")
    judged = said.judged
    return {
        "looked": f"{looked} It was asked about {said.why_not_all or f'all {said.of:,} test pictures'}: {metrics}.",
        "confusion": None if judged.confusion is None else charts.confusion(judged.confusion, said.names),
        "tables": [table for table in (tables.confused(judged, said.names), tables.hardest(judged)) if table],
        "mistakes": [
            {"picture": pictures.picture(wrong.image, wrong.label), "said": wrong.said, "label": wrong.label}
            for wrong in said.mistakes
            if wrong.image is not None
        ],
    }


def headline(told: Told) -> dict[str, str]:
    """The number that a run is about."""
    if told.evaluated and told.metric:
        value = told.evaluated[-1].get(told.metric)
        of = (
            ""
            if method_of(told.config).labels or told.metric == "loss"
            else f" of what {told.config['objective']} predicts"
        )
        return {"value": tables.number(value, told.metric), "what": f"test {charts.words(told.metric)}{of}"}
    if told.trained:
        return {
            "value": tables.number(told.trained[-1].get("loss"), "loss"),
            "what": "training loss; not evaluated yet",
        }
    return {"value": "–", "what": "nothing recorded yet"}


def facts(told: Told) -> list[tuple[str, str]]:
    """What was trained on what."""
    start, config = told.start, told.config
    counts = {"to train on": start.get("training_pictures"), "to test on": start.get("test_pictures")}
    used = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
    size = f"{start['parameters']:,} parameters" if start.get("parameters") else ""
    found = [
        ("model", ", ".join(filter(None, (model_of(told), size)))),
        ("trained by", method_words(told)),
        ("pictures", "; ".join(filter(None, (dataset_of(told), used)))),
        ("starts from", config["init_from"] or config["pretrained_dir"] or "scratch"),
        ("status", told.standing),
    ]
    if told.rows and (last := told.rows[-1].get("time")):
        found.append(("last sign", time.strftime("%-d %B %Y, %H:%M %Z", time.localtime(last))))
    return found


def model_of(told: Told) -> str:
    """The backbone in words; no ViT's, the method's name."""
    if told.parameters and "transformer/" not in told.parameters:
        return told.config["objective"]
    model, published = told.config["model"], {}
    with contextlib.suppress(KeyError, ValueError):  # a name of the user's own
        published = dict(configuration.flatten(configuration.plain(configuration.model_config(model["model_name"]))))
    given = dict(configuration.flatten(model))
    if published and all(published[field] == given[field] for field in SIZES):
        return model["model_name"]
    patch, stem = model["patches"]["size"], model["resnet"]["num_layers"] is not None
    cells = patch if isinstance(patch, int) else " x ".join(map(str, patch))
    blocks, width = model["transformer"]["num_layers"], model["hidden_size"]
    return f"{'hybrid ' if stem else ''}ViT, {blocks} blocks of width {width}, patches of {cells}"


def method_words(told: Told) -> str:
    """The objective, and what the labels are."""
    labels = LABELS[told.config["task"]] if method_of(told.config).labels else "no labels"
    return f"{told.config['objective']}, {labels}"


def dataset_of(told: Told) -> str:
    """The data set, of a folder its name."""
    dataset = told.config["dataset"]
    return Path(dataset).name or dataset


def times(told: Told) -> dict[str, Any]:
    """Shares of the time, and what one asks first about speed."""
    found = spent(told)
    parts = [
        {"key": key, "share": round(100 * seconds / found.total, 2), "words": f"{words} {seconds / found.total:.0%}"}
        for key, seconds, words in (
            ("steps", found.steps, "steps"), ("waiting", found.waiting, "waiting for pictures"),
            ("compiling", found.compiling, "compiling"), ("rest", found.rest, "evaluating, saving, drawing"),
        )
        if found.total > 0
    ]  # fmt: skip
    words = [
        ("in all", clock(found.total) if found.total > 0 else "not recorded"),
        ("speed", f"{found.rate:,.0f} pictures a second of training (median)" if found.rate else "not recorded"),
        ("waiting for pictures", clock(found.waiting) if found.total > 0 else "not recorded"),
        ("compiling", clock(found.compiling) if found.compiling else "not recorded"),
        ("MFU", f"{found.use:.1%} {found.use_words}" if found.use is not None else found.use_words),
    ]
    return {"parts": parts, "facts": words}


def _has_baseline(runs: Sequence[Told]) -> bool:
    return any("baseline" in row for told in runs for row in told.rows)


@functools.cache
def packed_plotly() -> str:
    """Plotly's program, compressed: a page is a third of the size, and any browser since 2023 unpacks it."""
    return base64.b64encode(gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)).decode()


def _file(name: str) -> str:
    return (HERE / name).read_text()


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html")
