"""What a person sees while a sweep runs: how many points are done, the best of them so far, and the time left."""

from nnbook.records import Record, best, main_metric, told, varied
from nnbook.results import shown


class Progress:
    """The bar: points done, failed and left, the best so far, and the time left."""

    def __init__(self, finished: int, left: int, metric: str = ""):
        from tqdm import tqdm

        self.records: list[Record] = []
        self.metric, self.total = metric, finished + left
        self.bar = tqdm(total=self.total, initial=finished, unit="point", dynamic_ncols=True, smoothing=0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def seen(self, record: Record) -> None:
        """Take up a point that an earlier start ran."""
        self.records.append(record)

    def ended(self, record: Record) -> None:
        """Take up a point that ended now."""
        self.seen(record)
        self.bar.set_postfix_str(self.line(), refresh=False)
        self.bar.update()

    def line(self) -> str:
        """The state in words."""
        by_point = {record["point"]: record for record in self.records}  # one that failed before may be done now
        failed = sum(bool(record["error"]) for record in by_point.values())
        done = len(by_point) - failed
        text = f"done {done}, failed {failed}, left {self.total - self.bar.n - 1}"
        metric = main_metric(self.records, self.metric)
        if not (winner := best(list(by_point.values()), metric)):
            return text
        figure = shown(metric, **winner["figures"][metric])
        return f"{text}; best {metric} {figure} at {told(winner, varied(list(by_point.values()))) or 'this point'}"
