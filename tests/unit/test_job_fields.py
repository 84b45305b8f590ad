"""A field of the job document is wherever a job can be described or seen. A test names what is missing where."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from scheduler.cli.jobs import jobs
from scheduler.node.handlers import Job
from scheduler.producer import Producer
from scheduler.protocol.documents import JobDocument

ROOT: Final = Path(__file__).resolve().parents[2]
FIELDS: Final = JobDocument.__struct_fields__


def rows(page: str) -> set[str]:
    """What stands in the first column of the tables of a page."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return {name for line in lines if line.startswith("| ") for name in re.findall(r"`(\w+)`", line.split("|")[1])}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_everywhere(field: str) -> None:
    """An argument of the producer, an attribute of a handler's job, in the help of `jobs submit` and on two pages."""
    submit, help_text = inspect.signature(Producer.submit), CliRunner().invoke(jobs, ["submit", "--help"]).output
    missing = [
        place
        for place, is_there in {
            "Producer.submit (scheduler/producer.py)": field in submit.parameters,
            "Job (scheduler/node/handlers.py)": isinstance(inspect.getattr_static(Job, field, None), property)
            or field in Job.__slots__,
            "scheduler jobs submit --help": field in help_text,
            "docs/JOBS.md": field in rows("JOBS.md"),
            "docs/PROTOCOL.md": field in rows("PROTOCOL.md"),
        }.items()
        if not is_there
    ]
    assert missing == []


def test_what_the_producer_takes_is_a_field() -> None:
    """But for the payload, which is beside the document."""
    assert set(inspect.signature(Producer.submit).parameters) - {"self", "payload"} == set(FIELDS)
