"""The report as one self-contained HTML file: no script, font or request, so it works by e-mail and offline.

A Content-Security-Policy in the page makes the browser enforce that, whatever a name or an error contains.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jobs.run import metrics, records
from jobs.run.metrics import EVALUATED, FIGURES, USUAL
from launch.observe import efficiency, wording
from launch.observe.report import charts as report_charts
from launch.observe.report import data as report_data
from launch.observe.report.charts import Bar, Mark, Series
from launch.observe.report.data import Data, Evaluation
from launch.observe.states import Status

STYLE = Path(__file__).with_name("report.css")
GENERATOR = "Baton"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(data: Data) -> str:
    """The whole report of one run."""
    sections = [
        _head(data),
        _curves(data),
        _timeline(data),
        _time(data),
        _evaluation(data.evaluation) if data.evaluation else "",
        _environment(data),
    ]
    return document(f"{data.run.name} · Baton", "\n".join(section for section in sections if section))


def document(title: str, body: str) -> str:
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f'<meta name="generator" content="{GENERATOR}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE.read_text()}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )
    return text.encode(errors="backslashreplace").decode()  # a file name need not be valid Unicode


def curves(statuses: Sequence[Status]) -> list[tuple[str, str, str, bool]]:
    """(title, name, kind, whether logarithmic) of each chart: those of all trainings, and the main metrics of
    these runs."""
    names = dict.fromkeys(one.best.metric for one in statuses if one.best) or {USUAL: None}
    return [
        ("Loss", "loss", "train", True),
        ("Learning rate", "lr", "train", False),
        *(
            (f"{name} of the validations{', in percent' if name in FIGURES else ''}", name, "val", False)
            for name in names
        ),
    ]


def _head(data: Data) -> str:
    one, past = data.status, data.past
    facts: list[tuple[str, str]] = []
    found = data.evaluation
    evaluated = metrics.evaluated(found.metrics, one.best, found.of) if found else None
    if evaluated is not None:
        facts.append((str(evaluated), f"{evaluated.metric}, evaluated"))
    if one.best is not None:
        facts.append((str(one.best), f"best {one.best.metric} in validation"))
    if one.step is not None:
        facts.append((f"{one.step:,}" + (f" / {one.max_steps:,}" if one.max_steps else ""), "steps"))
    if data.shares.ettr is not None:
        facts.append((f"{data.shares.ettr:.3f}", "ETTR, queue included"))
    facts.append((str(past.interruptions), "interruptions"))
    facts.append((f"{one.lost_steps:,}", "steps done again"))
    facts.append((wording.span(data.shares.wall), "from submission"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    problems = "".join(f'<p class="soft">note: {escape(text)}</p>' for text in data.problems)
    bad = one.state in ("failed", "stopped", "stuck")
    return (
        f'<h1>{escape(data.run.name)}</h1><p class="{"bad" if bad else "soft"}">{escape(one.words)} · '
        f"{escape(wording.moment(data.now))}</p>{problems}"
        f'<div class="facts">{cells}</div>'
    )


def _curves(data: Data) -> str:
    marks = interruptions(data)
    parts = []
    for title, key, kind, logarithmic in curves([data.status]):
        series = [Series(title.split(",")[0], points_of(getattr(data, kind), key), kind == "val")]
        if chart := report_charts.lines(title, series, marks, logarithmic):
            parts.append(f"<h2>{escape(title)}</h2>{chart}")
    if parts and marks:
        parts.append(
            '<p class="soft">Dashed: interruptions. What was done again is drawn once, as it was kept.</p>'
        )
    return "".join(parts)


def interruptions(data: Data, series: int | None = None) -> list[Mark]:
    """A mark for each start that did not finish the training, at its last step."""
    whose = "" if series is None else f"{data.run.name}, "
    return [
        Mark(
            one.step if one.step is not None else one.resumed_step or 0,
            f"{whose}start {one.start}: {one.why}",
            series,
        )
        for one in data.past.incarnations
        if one.ending not in ("", "finished")
    ]


def points_of(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if records.number(row.get(key)) is not None]


def _timeline(data: Data) -> str:
    runs = data.past.incarnations
    if not runs:
        return ""
    begin = min(data.past.submitted or runs[0].began, runs[0].began)
    end = max([one.ended or data.now for one in runs])
    unit, name = (60.0, "minutes") if end - begin < 3 * 3600 else (3600.0, "hours")
    if end - begin < 300:
        unit, name = 1.0, "seconds"
    kept = efficiency.kept_steps(data.past)
    hosts = {host for one in runs for host in one.hosts}
    bars = []
    for one, until in zip(runs, kept, strict=True):
        ended = one.ended or data.now
        text = f"start {one.start}, job {one.job}, {wording.span(ended - one.began)}: {one.why or 'running'}"
        first = min(one.first_step or ended, ended)
        lost = ended
        if one.step is not None and until < one.step:
            lost = min(ended, max(first, one.when(int(until))))
        rows = one.hosts if one.hosts and len(hosts) <= 24 else [f"start {one.start}"]
        for row in rows:
            bars.append(Bar(row, one.began, first, "startup", f"{text} (start-up)"))
            bars.append(Bar(row, first, lost, "training", text))
            bars.append(Bar(row, lost, ended, "lost", f"{text} (done again later)"))
            bars += [
                Bar(
                    row,
                    since,
                    until,
                    "suspended",
                    f"start {one.start} stood still for {wording.span(until - since)}",
                )
                for since, until in one.suspensions
            ]
    bars = [bar for bar in bars if bar.end > bar.begin]
    chart = report_charts.timeline(
        "Starts on nodes over time", bars, begin, end, unit, f"{name} since submission"
    )
    table_rows = []
    for one in runs:
        table_rows.append(
            [
                str(one.start),
                one.why or "running",
                wording.moment(one.began),
                wording.span((one.ended or data.now) - one.began),
                "" if one.resumed_step is None else f"{one.resumed_step:,}",
                "" if one.step is None else f"{one.step:,}",
                ", ".join(one.hosts),
                one.job,
            ]
        )
    head = (">start", "how it ended", "began", ">lasted", ">from step", ">to step", "on", "job")
    return f"<h2>Starts</h2>{chart}{table(head, table_rows)}"


WORDS = {
    "training": ("training", "steps that the finished weights hold"),
    "validation": ("validation", "during the training"),
    "saving": ("saving", "what checkpoints held the training up"),
    "startup": ("start-up", "from each start to its first step"),
    "lost": ("lost", "steps that had to be done again"),
    "suspended": ("suspended", "stopped on its nodes (scontrol suspend, SIGSTOP), until it could go on"),
    "queue": ("queue", "waiting to be started, at first and after interruptions"),
}


def _time(data: Data) -> str:
    spent = data.shares
    if spent.wall <= 0:
        return ""
    parts = [
        (WORDS[name][0], name, getattr(spent, name), wording.span(getattr(spent, name)))
        for name in efficiency.NAMES
    ]
    rows = "".join(
        f'<tr><td class="legend"><span><i class="{kind}"></i>{escape(name)}</span></td>'
        f'<td class="n">{escape(text)}</td><td class="n">{100 * amount / spent.wall:.1f}%</td>'
        f'<td class="soft">{escape(WORDS[kind][1])}</td></tr>'
        for name, kind, amount, text in parts
    )
    chart = report_charts.shares("Where the time went", parts)
    return f"<h2>Where the time went</h2>{chart}<table>{rows}</table>{_advice(data)}"


def _advice(data: Data) -> str:
    """The paragraphs on ETTR and on the best interval between checkpoints."""
    spent, cost = data.shares, data.costs
    lines = []
    if spent.ettr is not None:
        lines.append(
            f"ETTR {spent.ettr:.3f}: training and validation that were kept, over all time from submission "
            f"(arXiv 2410.21680). Without the queue it is {spent.running_ratio or 0:.3f}."
        )
    if cost.mtbi and cost.save_stall is not None:
        restart = cost.startup or 0.0
        save = max(cost.save_stall, 1e-3)
        best = efficiency.best_interval(save, cost.mtbi, restart, cost.queue or 0.0)
        text = (
            f"An interruption came every {wording.span(cost.mtbi)} on the nodes, a save held the training up "
            f"for {wording.span(cost.save_stall)}: for interruptions that come unannounced, a checkpoint "
            f"every {wording.span(best)} would have been best "
            f"(Young {wording.span(efficiency.young(save, cost.mtbi))})"
        )
        if cost.interval:
            had, could = (
                efficiency.expected_ettr(one, save, restart, cost.mtbi, cost.queue or 0.0)
                for one in (cost.interval, best)
            )
            text += f"; it was every {wording.span(cost.interval)} "
            text += f"(expected ETTR {had:.3f} instead of {could:.3f})"
        lines.append(text + ".")
    elif spent.ettr is not None:
        lines.append("No interruption so far, so there is no best interval between checkpoints to tell.")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


MORE_BY_CLASS = ("Acc", "Dice", "Fscore", "Precision", "Recall", "BoundaryIoU")


def _with_interval(metrics: dict[str, Any], name: str) -> str:
    ends = (metrics.get("intervals") or {}).get(name)
    value = metrics.get(name)
    shown = value if isinstance(value, str) else percent(value) or "–"
    return f"{name} {shown}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def _evaluation(found: Evaluation) -> str:
    metrics = found.metrics
    figures = " · ".join(_with_interval(metrics, name) for name in metrics.get("asked", EVALUATED[:3]))
    augmented = f", augmented ({metrics['augmented']})" if metrics.get("augmented") else ""
    parts = [
        f"<h2>Evaluation</h2><p>{escape(figures)} <span class=soft>("
        f"{escape(str(metrics.get('checkpoint', '')))}, "
        f"{escape(str(metrics.get('images', '')))} images{escape(augmented)})</span></p>"
    ]
    if "bootstrap" in metrics:
        parts.append('<p class="soft">In brackets: 95 % intervals over images (bootstrap).</p>')
    parts += [
        f'<p class="soft">Not computed: {escape(str(why))}</p>' for why in metrics.get("not_computed", [])
    ]
    more = [key for key in MORE_BY_CLASS if any(key in one for one in found.classes)]
    rows = []
    for one in found.classes:
        iou = records.number(one.get("IoU"))
        width = f'<i style="width:{max(0.0, min(100.0, iou)):.1f}%"></i>' if iou is not None else ""
        if iou is None:
            width = '<span class="soft">not in the images</span>'
        ends = (one.get("intervals") or {}).get("IoU")
        sure = f"{ends[0]:.1f} … {ends[1]:.1f}" if ends else ""
        cells = "".join(f'<td class="n">{percent(one.get(key))}</td>' for key in more)
        rows.append(
            f'<tr><td>{escape(str(one.get("name")))}</td><td class="n">{percent(iou)}</td>'
            f'<td class="n soft">{sure}</td><td class="meter">{width}</td>{cells}</tr>'
        )
    if rows:
        head = "".join(f'<th class="n">{name.replace("BoundaryIoU", "Boundary IoU")}</th>' for name in more)
        parts.append(
            '<div class="wide"><table><tr><th>class</th><th class="n">IoU</th><th></th><th></th>'
            f"{head}</tr>{''.join(rows)}</table></div>"
        )
    if found.confusion:
        chart = report_charts.heatmap("Confusion matrix", found.names, found.confusion)
        parts.append(
            f'<h2>Confusion matrix</h2><p class="soft">Rows: the truth. Columns: what it was taken for, in '
            f"percent of the row's pixels.</p>{chart}"
        )
    if found.pictures:
        parts.append(
            '<h2>Predictions</h2><p class="soft">Image, truth, prediction; the worst images first.</p>'
            '<div class="pictures">'
        )
        parts += [
            f'<figure><img alt="{escape(name)}: image, truth, prediction" src="{url}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
            for name, url in found.pictures
        ]
        parts.append("</div>")
        if found.left_out:
            parts.append(
                f'<p class="soft">{wording.plural(found.left_out, "more picture")} in '
                f"eval/{escape(found.name)}/pictures.</p>"
            )
    return "".join(parts)


def _environment(data: Data) -> str:
    request = data.request
    if request is None:
        return ""
    rows = [
        ["worker", shlex.join(request.worker)] if request.worker else ["config", request.config],
        ["overrides", json.dumps(report_data.public(request)["set"]) if request.set else ""],
        ["seed", str(request.seed)],
        ["data", request.data_root],
        [
            "resources",
            f"{wording.plural(request.nodes, 'node')} × {wording.plural(request.gpus, 'rank')}, "
            f"{request.executor}",
        ],
        ["profile", request.cluster.profile],
        ["interpreter", request.python],
        *([name, version] for name, version in request.versions.items()),
        ["run directory", str(data.run.path)],
    ]
    shown = table(("what", "value"), [row for row in rows if row[1]])
    repeat = ""
    if command := report_data.repeat_command(request):
        repeat = (
            "<p>The command that makes it once more, under a new name; with the same data it gives the same "
            f"weights:</p><pre>{escape(shlex.join(command))}</pre>"
        )
    return f"<h2>Environment</h2>{shown}{repeat}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; columns whose names begin with > hold numbers."""
    numbers = [column.startswith(">") for column in columns]
    head = "".join(
        f"<th{' class=n' if n else ''}>{escape(c.removeprefix('>'))}</th>"
        for c, n in zip(columns, numbers, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if n else _one_line(cell)}>{escape(cell)}</td>"
            for cell, n in zip(row, numbers, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _one_line(cell: str) -> str:
    """The attribute that keeps short cells (a time, a job, a host) on one line; long ones may wrap."""
    return " class=one" if len(cell) <= 24 else ""


def percent(value: Any) -> str:
    number = records.number(value)
    return "" if number is None else f"{number:.2f}"
