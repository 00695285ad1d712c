"""What every page of the report has: its head, with a policy that holds a browser to loading nothing."""

import base64
import hashlib
from html import escape
from importlib.resources import files


def head(title: str, script: str = "") -> str:
    """A page up to its body; of scripts, only the one given may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"; script-src 'sha256-{digest}'" * bool(script)
    return template("head.html").format(title=escape(title), css=template("style.css"), policy=policy)


def template(name: str) -> str:
    """The text of a template, style sheet or script that lies beside this module."""
    return files("nnbook").joinpath(name).read_text(encoding="utf-8")
