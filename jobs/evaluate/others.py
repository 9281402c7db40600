"""The config's other metrics, which are not counted here: each is run as by mmengine's Evaluator, with the
same result for any number of processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

from jobs.catalog.supported import name_of
from jobs.engine import ranks, wire
from jobs.run.errors import UserError, in_a_line

MOST_BYTES = 60 << 20
"""The most bytes of one process's results for all metrics; a message can have 64 MiB."""


class Others:
    """The results of one process's images for each metric."""

    def __init__(self, descriptions: Sequence[Any], meta: Any) -> None:
        """`meta`: the dataset's, from which metrics take class names."""
        self.names = [name_of(one.get("type")) for one in descriptions]
        self.failed: dict[int, str] = {}
        """Number of a metric -> why it is not computed."""
        self.metrics: dict[int, Any] = {}
        self.found: dict[int, list[tuple[int, list[Any]]]] = {}
        """Number of a metric -> for each image, what `process` added to the metric's results."""
        for number, description in enumerate(descriptions):
            try:
                self.metrics[number] = _built(description)
                self.metrics[number].dataset_meta = meta
                self.found[number] = []
            except (Exception, SystemExit) as error:  # anybody's code
                self._fail(number, error)

    def __bool__(self) -> bool:
        return bool(self.names)

    def process(self, index: int, batch: Any, results: Sequence[Any]) -> None:
        """`batch` and `results`: the model's input and output for the image `index`."""
        for number, metric in list(self.metrics.items()):
            before = len(metric.results)
            try:
                metric.process(batch, [result.to_dict() for result in results])
            except (Exception, SystemExit) as error:  # anybody's code; it is named with the results
                self._fail(number, error)
            else:
                self.found[number].append((index, metric.results[before:]))

    def computed(
        self, us: ranks.Ranks, size: int, taken: Collection[str]
    ) -> tuple[dict[str, Any], list[str]] | None:
        """On rank 0: (figure name -> value, "METRIC: why" for those not computed); None on the others, once
        rank 0 has their results. `size`: images of the dataset; a figure whose name is `taken` is prefixed
        with its metric's."""
        parts = [self.found]
        if us.size > 1:
            packed = ranks.gather(us, self._packed())
            if packed is None:
                return None
            parts = []
            for failed, found in map(wire.unpack, packed):
                self.failed = failed | self.failed
                parts.append({number: wire.unpack(content) for number, content in found.items()})
        values: dict[str, Any] = {}
        for number, metric in list(self.metrics.items()):
            if number in self.failed:
                continue
            # In the order in which a single process would have added them.
            images = sorted((one for found in parts for one in found[number]), key=lambda image: image[0])
            metric.results = [result for _, results in images for result in results]
            try:
                computed = metric.evaluate(size)
            except (Exception, SystemExit) as error:  # anybody's code; it is named with the results
                self._fail(number, error)
                continue
            for name, value in computed.items():
                free = name not in values and name not in taken
                values[name if free else f"{self.names[number]}/{name}"] = _plain(value)
        return values, [f"{self.names[number]}: {why}" for number, why in sorted(self.failed.items())]

    def _packed(self) -> bytes:
        """The message for `computed`; a metric whose results cannot be sent has failed."""
        found: dict[int, bytes] = {}
        for number, results in list(self.found.items()):
            try:
                packed = bytes(wire.pack(results))
                if sum(map(len, found.values())) + len(packed) > MOST_BYTES:
                    raise UserError(
                        f"its results exceed the {MOST_BYTES >> 20} MiB that one process can send to "
                        "another: evaluate with one process (--gpus 1)"
                    )
                found[number] = packed
            except UserError as error:
                self._fail(number, error)
        return bytes(wire.pack((self.failed, found)))

    def _fail(self, number: int, error: BaseException) -> None:
        self.failed.setdefault(number, in_a_line(error, 200))
        self.metrics.pop(number, None)
        self.found.pop(number, None)


def _built(description: Any) -> Any:
    from mmseg.registry import METRICS

    return METRICS.build(copy.deepcopy(dict(description)))


def _plain(value: Any) -> Any:
    """A figure as JSON can hold it; None for one that is not finite."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    return value if math.isfinite(value) else None
