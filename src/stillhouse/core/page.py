"""Pages that people read: one template environment, one style sheet for all of them.

A page is one file that asks nobody for anything. Knows no stage's figures.
"""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(package: str) -> Environment:
    """Templates of a package, beside the house's own (`head.html`, `house.css`).

    What a page shows is escaped, and a name that it does not know is an error.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("stillhouse.core")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
