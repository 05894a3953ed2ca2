"""What an operator sees of a process that runs for long: one line an event, on standard error."""

import json
import logging
import time
from collections.abc import Mapping


class _Json(logging.Formatter):
    """time, level, logger, message, what is the same on every line, and the fields that an event brings."""

    def __init__(self, always: Mapping[str, str]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps({**fields, **self._always, **getattr(record, "fields", {})})


def log_to_stderr(*, json_lines: bool, **always: str) -> None:
    """Log every event of FedFREE from now on.

    Args:
        always: fields of every JSON line, such as the run's id.
    """
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter = _Json(always) if json_lines else plain
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
