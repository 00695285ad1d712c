"""What a browser would fetch or run is taken out of a page's text, and each heading can be linked to."""

import re
from html import escape
from urllib.parse import quote

LOADS = "script, link, iframe, frame, object, embed, base, meta, image, use"
TAKEN = {"main", "toggle"}  # ids of ours


def clean(soup) -> None:
    """Take out what loads or runs, and leave a picture's text where it goes; put wide tables of prose into boxes."""
    for tag in soup.select(LOADS):
        tag.decompose()
    for tag in soup.select("[src], [srcset], [poster]"):
        if not tag.get("src", "").startswith("data:") or tag.has_attr("srcset"):
            tag.replace_with(tag.get("alt") or "")
    for style in soup.select("style"):
        style.string = re.sub(r"@import[^;]*;?|url\(\s*['\"]?(?!data:)[^)]*\)", "", style.string or "")
    for tag in soup.find_all(True):
        for name in [name for name, value in tag.attrs.items() if _acts(name, value)]:
            del tag[name]
    for tag in soup.select(".jp-MarkdownCell table"):
        tag.wrap(soup.new_tag("div", attrs={"class": "scroll"}))


def _acts(name: str, value) -> bool:
    """Whether an attribute runs something or leads to what does."""
    scheme = re.sub(r"[\s\x00-\x1f]", "", str(value)[:40]).lower()
    return name.startswith("on") or (name in ("href", "xlink:href", "action") and scheme.startswith("javascript:"))


def anchor(soup) -> list[tuple[str, str]]:
    """Give each heading of the prose an id as Jupyter would, and a link; returns links and texts of the h2 ones."""
    sections, taken = [], TAKEN | {tag["id"] for tag in soup.select("[id]")}
    for heading in soup.select(", ".join(f".jp-MarkdownCell h{level}" for level in (1, 2, 3, 4))):
        text = heading.get_text().strip()
        name = _free(re.sub(r"\s+", "-", text) or "section", taken)
        taken.add(name)
        heading["id"] = name
        if heading.name == "h2":
            sections.append((quote(name), "".join(map(str, _unlinked(heading).contents))))
        link = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{quote(name)}"})
        link["aria-label"] = f"Link to “{escape(text)}”"
        link.string = "#"
        heading.append(link)
    return sections


def _free(name: str, taken: set[str]) -> str:
    """The name, or with the first number that nothing else has."""
    return next(new for new in (name, *(f"{name}-{number}" for number in range(2, 10_000))) if new not in taken)


def _unlinked(heading):
    """A copy of a heading with its links' texts in the place of links, and without ids."""
    from copy import copy

    bare = copy(heading)
    for tag in bare.find_all(True):
        tag.unwrap() if tag.name == "a" else tag.attrs.pop("id", None)
    return bare
