"""Tasks whose problems a user has on disk."""

from __future__ import annotations

import random
import zlib
from abc import abstractmethod
from pathlib import Path

from glimprouter.tasks.base import Problem, Split, Task
from glimprouter.tasks.files import Record, field, read_records
from glimprouter.tasks.generated import check_request


class FileTask(Task):
    """Problems of one file, halved into the two splits by the CRC32 of what they ask.

    Attributes:
        path: The file.
        id_fields: Fields that may name a problem; without any of them its line does.
    """

    id_fields: tuple[str, ...] = ("id", "ID")

    def __init__(self, path: str | Path) -> None:
        """Reads the file.

        Raises:
            FileNotFoundError: There is none.
            ValueError: Not in the format of the data set, or two problems of one name.
            ImportError: A Parquet file without pyarrow.
        """
        self.path = Path(path)
        self._splits: dict[Split, list[Problem]] = {"development": [], "report": []}
        seen: set[str] = set()
        for number, record in enumerate(read_records(path), 1):
            where = f"{self.path}, record {number}"
            names = [str(record[name]) for name in self.id_fields if record.get(name) is not None]
            problem = self.problem_of(record, names[0] if names else f"line-{number}", where)
            if problem.key in seen:
                raise ValueError(f"{where}: there is another problem {problem.key!r}")
            seen.add(problem.key)
            in_report = zlib.crc32(problem.prompt.encode()) % 2 == 0
            self._splits["report" if in_report else "development"].append(problem)

    @abstractmethod
    def problem_of(self, record: Record, key: str, where: str) -> Problem:
        """The problem of a record; ``where`` says in errors which one it is."""

    def problems(self, count: int, split: Split, seed: int = 0) -> list[Problem]:
        """Distinct problems in an order that the seed gives.

        Raises:
            ValueError: A negative count, an unknown split, or more than there are.
        """
        check_request(count, split)
        there_are = self._splits[split]
        if count > len(there_are):
            raise ValueError(
                f"{self.path} has {len(there_are)} {split} problems of {self.name}, {count} were"
                " asked for"
            )
        return random.Random(seed).sample(there_are, count)


__all__ = ["FileTask", "Record", "field"]
