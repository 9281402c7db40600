"""Groups of runs that differ in more than the seed: each group's mean ± standard deviation, and how certain
the difference between two groups is.

The difference is estimated with a paired bootstrap: images are drawn with replacement, the same for all runs,
from the evaluations' per-image counts (per_image.npz); if the groups' runs have the same seeds, these are
drawn, too (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from jobs.run import counts as counted
from jobs.run import files, records
from jobs.run.metrics import EVALUATED, USUAL, Figure, shown
from launch.observe import evaluations, figures, wording
from launch.observe.report import data as report_data
from launch.observe.report.data import Data

METRICS = EVALUATED[:3]
"""The evaluation's figures, in percent, shown besides the main metric."""
VALIDATION = "best "
"""Prefix of a metric's name that means its value in the validations."""
SEEDS = ("seed", "set.randomness.seed")
RESAMPLES = counted.RESAMPLES
FROM_COUNTS = (USUAL, "mAcc", "aAcc", "fwIoU", "mDice", "mPrecision", "mRecall")
"""Metrics that follow from per-image pixel counts alone; an F-score also depends on the config's beta."""


class Estimate(msgspec.Struct):
    """The mean of a figure over runs."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n − 1); None for a single value."""
    count: int
    """Number of values; runs with the same seed count as one."""
    metric: str = USUAL

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {shown(self.metric, self.deviation)}"
        return shown(self.metric, self.mean) + deviation


class Group(msgspec.Struct):
    name: str
    """What distinguishes it, such as "lr=0.02"."""
    runs: list[Data]
    estimates: dict[str, Estimate]


class Difference(msgspec.Struct):
    """How much the first group's figure exceeds the second's (in points for percentages)."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float
    """Two-sided p-value: how often chance alone would produce a difference this clear."""
    over: str
    """What was resampled, such as "images and seeds"."""


def grouped(all_data: Sequence[Data]) -> list[Group]:
    """The groups, best first by the metric that they are compared by."""
    flats = [_asked(data) for data in all_data]
    keys = list(dict.fromkeys(key for one in flats for key in one if key not in SEEDS))
    differing = [key for key in keys if len({repr(one.get(key)) for one in flats}) > 1]
    found: dict[str, list[Data]] = {}
    for data, one in zip(all_data, flats, strict=True):
        found.setdefault(_name(one, differing), []).append(data)
    names = _names(all_data)
    groups = [Group(name, runs, _estimates(runs, names)) for name, runs in found.items()]
    metric = compared(all_data)
    less = any(one.less for one in _best(all_data) if one.metric == metric)
    return sorted(groups, key=lambda group: _rank(group, metric, less), reverse=True)


def _best(all_data: Iterable[Data]) -> list[Figure]:
    return [data.status.best for data in all_data if data.status.best]


def compared(all_data: Sequence[Data]) -> str:
    """The metric that runs are compared by: their common main metric, or the default one if they differ or if
    not all evaluations have it."""
    metric = figures.shared(_best(all_data)) or USUAL
    told = [data.evaluation.metrics for data in all_data if data.evaluation]
    return metric if all(metric in one for one in told) else USUAL


def _names(all_data: Sequence[Data]) -> list[str]:
    """The metrics shown for each group: of the evaluations, then of the validations."""
    validated = dict.fromkeys(one.metric for one in _best(all_data)) or {USUAL: None}
    evaluated = dict.fromkeys((compared(all_data), *METRICS))
    return [*evaluated, *(VALIDATION + metric for metric in validated)]


def _rank(group: Group, metric: str, less: bool) -> float:
    best = group.estimates.get(metric) or group.estimates.get(VALIDATION + metric)
    return -math.inf if best is None else -best.mean if less else best.mean


def _asked(data: Data) -> dict[str, Any]:
    """What groups a run: the parts of its request and evaluation that matter, dotted key -> value."""
    if data.request is None:
        return {"run": data.run.name}
    shown = report_data.public(data.request)
    asked = {key: shown[key] for key in ("config", "worker", "data_root", "set", "seed") if shown[key]}
    asked["checkpoint"] = _other_checkpoint(data, shown["checkpoint"]) or shown["checkpoint"]
    augmented = data.evaluation.metrics.get("augmented") if data.evaluation else None
    return report_data.flat(asked | ({"augmented": augmented} if augmented else {}))


def _other_checkpoint(data: Data, which: str) -> str:
    """The checkpoint that was evaluated, if it is not the one that should have been (`which`); else ""."""
    if data.evaluation is None:
        return ""
    meant = evaluations.meant(data.run.checkpoints, which)
    return evaluations.whose(data.run.eval / data.evaluation.name, meant)


def _name(asked: dict[str, Any], differing: Sequence[str]) -> str:
    parts = []
    for key in differing:
        value = asked.get(key, "–")
        if key == "config":
            parts.append(Path(str(value)).stem)
        else:
            parts.append(f"{key.removeprefix('set.')}={value}")
    return ", ".join(parts) or "all"


def _estimates(runs: Sequence[Data], names: Iterable[str]) -> dict[str, Estimate]:
    """Estimates over the seeds: runs with the same settings and seed are the same training repeated, which
    says nothing about its variance."""
    found = {}
    for name in names:
        of_seeds = [
            [value for data in them if (value := figure(data, name)) is not None]
            for them in _by_seed(runs).values()
        ]
        if values := [math.fsum(them) / len(them) for them in of_seeds if them]:
            found[name] = estimate(values, name.removeprefix(VALIDATION))
    return found


def _by_seed(runs: Sequence[Data]) -> dict[int, list[Data]]:
    found: dict[int, list[Data]] = {}
    for data in runs:
        found.setdefault(_seed(data), []).append(data)
    return found


def repeated(groups: Sequence[Group]) -> list[str]:
    """A note for each seed that several runs of a group share."""
    return [
        f"{group.name}: {', '.join(data.run.name for data in them)} have the same settings and the same "
        f"seed, {seed}: they count as one run, with the mean of their figures"
        for group in groups
        for seed, them in _by_seed(group.runs).items()
        if len(them) > 1
    ]


def figure(data: Data, name: str) -> float | None:
    best = data.status.best
    if best and name == VALIDATION + best.metric:
        return best.value
    return records.number(data.evaluation.metrics.get(name)) if data.evaluation else None


def estimate(values: Sequence[float], metric: str) -> Estimate:
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, None, count, metric)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, deviation, count, metric)


# ----------------------------------------------------------------------------------------------- differences


def differences(groups: Sequence[Group]) -> tuple[list[Difference], list[str]]:
    """The best group against each of the others, and notes on those that could not be compared."""
    found, missing = [], []
    metric = compared([data for group in groups for data in group.runs])
    for other in groups[1:]:
        try:
            found.append(difference(groups[0], other, metric))
        except ValueError as error:
            missing.append(f"{groups[0].name} against {other.name}: {error}")
    return found, missing


def difference(first: Group, second: Group, metric: str) -> Difference:
    """The difference of a metric. Raises ValueError, with the reason, if there is nothing to resample."""
    import numpy as np

    pairs = _pairs(first, second, metric)
    counts = [[_counts(data) for data in side] for side in pairs]
    over_images = metric in FROM_COUNTS and all(one is not None for side in counts for one in side)
    if over_images:
        names = {tuple(one["names"]) for side in counts for one in side if one is not None}
        over_images = len(names) == 1
    seeds = [list(map(_seed, side)) for side in pairs]
    seeded = set(seeds[0]) == set(seeds[1]) and len(set(seeds[0])) > 1
    if not over_images and not seeded:
        raise ValueError("there are no per-image counts for the same images, and no two seeds that both have")
    random = np.random.default_rng(0)
    if over_images:
        sides = [_figures(side, metric) for side in _drawn(counts, random)]
    else:
        alike = (1, RESAMPLES + 1)
        sides = [np.tile([[figure(data, metric) or 0.0] for data in side], alike) for side in pairs]
    sides = [_of_seeds(side, of) for side, of in zip(sides, seeds, strict=True)]
    if seeded:  # the same seeds on both sides; the first column is what was measured
        which = random.integers(0, len(sides[0]), (len(sides[0]), RESAMPLES + 1))
        which[:, 0] = np.arange(len(sides[0]))
        sides = [np.take_along_axis(side, which, 0) for side in sides]
    deltas = sides[0].mean(0) - sides[1].mean(0)
    drawn = deltas[1:]
    low, high = counted.interval(deltas)
    p = 2 * min((drawn <= 0).sum() + 1, (drawn >= 0).sum() + 1) / (RESAMPLES + 1)
    over = " and ".join(["images"] * over_images + ["seeds"] * seeded)
    return Difference(
        first.name, second.name, float(deltas[0]), float(low), float(high), float(min(1.0, p)), over
    )


def _pairs(first: Group, second: Group, metric: str) -> list[list[Data]]:
    """The evaluated runs of both; only those of common seeds if there are two. Raises ValueError."""
    sides = [[data for data in group.runs if figure(data, metric) is not None] for group in (first, second)]
    if not all(sides):
        raise ValueError("not both are evaluated")
    common = set(map(_seed, sides[0])) & set(map(_seed, sides[1]))
    return [[data for data in side if _seed(data) in common] for side in sides] if len(common) > 1 else sides


def _of_seeds(rows: Any, seeds: Sequence[int]) -> Any:
    """From a row per run to a row per seed, in ascending order: the mean over the runs that have it."""
    import numpy as np

    of = np.array(seeds)
    return np.array([rows[of == seed].mean(0) for seed in sorted(set(seeds))])


def _seed(data: Data) -> int:
    """The seed as the training takes it (jobs/mmseg/config.py); one in the config is shared by its group."""
    if data.request is None:
        return 0
    own = data.request.set.get("randomness.seed")
    return data.request.seed or (own if isinstance(own, int) else 0)


def _counts(data: Data) -> Any:
    """An evaluation's counts per image (jobs/evaluate/per_image.py), or None."""
    if data.evaluation is None:
        return None
    return counted.read(data.run.eval / data.evaluation.name / files.EVAL_IMAGES)


def _drawn(counts: list[list[Any]], random: Any) -> list[list[Any]]:
    """Each run's counts summed over the drawn images, (RESAMPLES + 1) × classes; row 0 is over all images."""
    kept = [one[key] for side in counts for one in side for key in counted.KINDS]
    sums = iter(counted.resampled(kept, random))
    return [[{key: next(sums) for key in counted.KINDS} for _ in side] for side in counts]


def _figures(side: list[Any], metric: str = USUAL) -> Any:
    """The figure, in percent, of each run (rows) in each draw (columns), over the classes that occur."""
    import numpy as np

    counts = [[one[key] for key in counted.KINDS] for one in side]
    if metric in ("aAcc", "fwIoU"):
        return np.array([counted.overall(*one)[metric] for one in counts])
    return np.array([counted.mean(counted.rates(*one)[metric[1:]]) for one in counts])


# --------------------------------------------------------------------------------------------------- a table


def rows(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """(columns, a row for each group); a column whose name begins with > holds numbers."""
    names = _names([data for group in groups for data in group.runs])
    names = [name for name in names if any(name in group.estimates for group in groups)]
    table = [
        [group.name, _count(group), *(str(group.estimates.get(name, "")) for name in names)]
        for group in groups
    ]
    return ["group", ">runs", *(f">{name}" for name in names)], table


def _count(group: Group) -> str:
    """The number of runs, with the number of seeds if that is smaller."""
    runs, seeds = len(group.runs), len(_by_seed(group.runs))
    return str(runs) if seeds == runs else f"{runs} ({wording.plural(seeds, 'seed')})"


def _plain(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """`rows` as text, with each group's difference from the best one where that is known."""
    columns, table = rows(groups)
    against = _against_best(groups)
    if against:
        columns += ["difference", "95 % interval", "p"]
        for group, line in zip(groups, table, strict=True):
            one = against.get(group.name)
            line += told(one) if one else [""] * 3
    return [column.removeprefix(">") for column in columns], table


def told(one: Difference) -> list[str]:
    """The cells of a difference: its mean, the interval, and p."""
    return [signed(one.mean), f"{signed(one.low)} … {signed(one.high)}", f"{one.p:.3f}"]


def signed(value: float) -> str:
    """A difference with its sign; no sign if it rounds to zero."""
    text = f"{value:+.2f}"
    return text if text.strip("+-0.") else "0.00"


def _against_best(groups: Sequence[Group]) -> dict[str, Difference]:
    """A group's name -> its difference from the best group."""
    return {
        one.second: Difference(one.second, one.first, -one.mean, -one.high, -one.low, one.p, one.over)
        for one in differences(groups)[0]
    }


def as_markdown(groups: Sequence[Group]) -> str:
    columns, table = _plain(groups)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *table]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def as_latex(groups: Sequence[Group]) -> str:
    """A LaTeX tabular that uses booktabs."""
    columns, table = _plain(groups)
    body = [" & ".join(map(_latex, line)) + r" \\" for line in [columns, *table]]
    head = rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    return "\n".join(
        [head, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", ""]
    )


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "…": r"\dots",
    }
    return re.sub(r"[\\~^±–…&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), text)


def as_csv(groups: Sequence[Group]) -> str:
    """CSV: mean, standard deviation and count in separate columns, and the difference from the best group."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _names([data for group in groups for data in group.runs])
    figures = (f"{name} {what}" for name in names for what in ("mean", "std", "n"))
    writer.writerow(["group", "runs", *figures, "difference", "low", "high", "p"])
    against = _against_best(groups)
    for group in groups:
        cells: list[object] = [group.name, len(group.runs)]
        for name in names:
            one = group.estimates.get(name)
            deviation = "" if one is None or one.deviation is None else f"{one.deviation:.4f}"
            cells += [f"{one.mean:.4f}", deviation, one.count] if one else ["", "", 0]
        if other := against.get(group.name):
            cells += [f"{value:.4f}" for value in (other.mean, other.low, other.high, other.p)]
        else:
            cells += [""] * 4
        writer.writerow(cells)
    return text.getvalue()


FORMATS = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}
