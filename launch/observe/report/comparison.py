"""Several runs on one page, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jobs.run import metrics
from launch.observe import figures, wording
from launch.observe.report import charts as report_charts
from launch.observe.report import data as report_data
from launch.observe.report import groups, page
from launch.observe.report.charts import Series
from launch.observe.report.data import Data


def comparison(all_data: Sequence[Data]) -> str:
    """The HTML page for several runs: figures, curves, differences between their requests."""
    rows = []
    best, told = figures.heads([data.status for data in all_data])
    for data in all_data:
        one, found = data.status, data.evaluation
        evaluated = found.metrics if found else {}
        figure = figures.cell(metrics.evaluated(evaluated, one.best, found.of if found else ""), told)
        rows.append(
            [
                one.name, one.words, str(one.step or ""), figures.cell(one.best, best),
                figure, page.percent(evaluated.get("aAcc")),
                str(one.interruptions), str(one.lost_steps),
                f"{data.shares.ettr:.3f}" if data.shares.ettr is not None else "",
                wording.span(data.shares.wall),
            ]
        )  # fmt: skip
    head = (
        "run",
        "state",
        ">step",
        f">{best}",
        f">{told}",
        ">aAcc",
        ">interruptions",
        ">steps redone",
        ">ETTR",
        ">time",
    )
    parts = [f"<h1>{escape(' · '.join(d.run.name for d in all_data))}</h1>"]
    parts += [_groups(all_data), "<h2>Runs</h2>", page.table(head, rows)]
    marked = False
    for title, key, kind, logarithmic in page.curves([data.status for data in all_data]):
        shown = [(data, points) for data in all_data if (points := page.points_of(getattr(data, kind), key))]
        series = [Series(data.run.name, points, kind == "val") for data, points in shown]
        marks = [mark for index, (data, _) in enumerate(shown) for mark in page.interruptions(data, index)]
        if chart := report_charts.lines(title, series, marks, logarithmic):
            parts.append(f"<h2>{escape(title)}</h2>{chart}")
            marked = marked or bool(marks)
    if marked:
        parts.append('<p class="soft">Dashed: interruptions, each in the colour of its run.</p>')
    parts.append(_class_comparison(all_data))
    parts.append(_differences(all_data))
    return page.document("Comparison · Baton", "\n".join(parts))


def _groups(all_data: Sequence[Data]) -> str:
    """The groups, by what differs besides the seed: each one's mean, and how certain the differences are."""
    found = groups.grouped(all_data)
    if len(found) == len(all_data) == 1 or not any(group.estimates for group in found):
        return ""
    text = (
        "<h2>Groups</h2><p class=soft>Runs that differ in their seed alone are one group: mean ± standard "
        f"deviation (n − 1), in percent.</p>{page.table(*groups.rows(found))}"
    )
    differences, missing = groups.differences(found)
    if differences:
        columns = (f"{groups.compared(all_data)} of", "above", ">by", ">95 % interval", ">p", "drawn")
        lines = [[one.first, one.second, *groups.told(one), one.over] for one in differences]
        text += f"<p class=soft>Paired bootstrap, {groups.RESAMPLES:,} draws.</p>{page.table(columns, lines)}"
    return text + "".join(f'<p class="soft">{escape(why)}</p>' for why in [*missing, *groups.repeated(found)])


def _class_comparison(all_data: Sequence[Data]) -> str:
    evaluated = [data for data in all_data if data.evaluation]
    if len(evaluated) < 2:
        return ""
    by_run = [
        {one["name"]: one.get("IoU") for one in data.evaluation.classes}
        for data in evaluated
        if data.evaluation
    ]
    names = list(dict.fromkeys(name for classes in by_run for name in classes))
    rows = [[name, *(page.percent(classes.get(name)) for classes in by_run)] for name in names]
    marks = [data.evaluation.of for data in evaluated if data.evaluation]
    heads = [
        f">{data.run.name}{f' ({mark})' if mark else ''}" for data, mark in zip(evaluated, marks, strict=True)
    ]
    return "<h2>IoU by class</h2>" + page.table(("class", *heads), rows)


def _differences(all_data: Sequence[Data]) -> str:
    """The table of what differs between the runs' requests."""
    requests = [
        report_data.flat(report_data.public(data.request)) if data.request else {} for data in all_data
    ]
    keys = dict.fromkeys(key for one in requests for key in one if key not in ("name", "created"))
    rows = [
        [key, *(str(one.get(key, "")) for one in requests)]
        for key in keys
        if len({str(one.get(key, "")) for one in requests}) > 1
    ]
    if not rows:
        return ""
    return "<h2>What they differ in</h2>" + page.table(("what", *(data.run.name for data in all_data)), rows)
