"""HTML pages that refer to nothing outside: one style sheet, and pictures inside the page."""

import base64
from pathlib import Path

import jinja2


def render(template: Path, **values) -> str:
    """Return a page. A template includes page.css; Jinja2 escapes every value."""
    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template.name).render(**values)


def data_uri(content: bytes, form: str) -> str:
    """Return a picture as the `src` of an <img>."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
