"""The templates of the report's pages: every text that enters them is escaped."""

from pathlib import Path

import jinja2

from ddpo_fair.report import formatting

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["percent"] = formatting.percent
ENVIRONMENT.filters["interval"] = formatting.with_interval
ENVIRONMENT.globals["formatting"] = formatting
