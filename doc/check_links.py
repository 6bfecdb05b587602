"""Check that every link within a built documentation leads somewhere.

Sphinx warns of references that it can't resolve. This looks at the result: pages, files
and places in pages to which any page, picture or script refers.
"""

from html.parser import HTMLParser
from pathlib import Path
import sys
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self, path):
        super().__init__()
        self.links = []
        self.places = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "srcset" and value:
                self.links += [part.split()[0] for part in value.split(",")]
            if name in ("id", "name") and value:
                self.places.add(value)


def check(folder):
    """Count the links within a built documentation, and list the broken ones.

    Of each that leads nowhere it returns page and link.
    """
    # Below _static are templates of the theme, which are no pages.
    paths = [p.resolve() for p in folder.rglob("*.html") if "_static" not in p.parts]
    pages = {path: Page(path) for path in sorted(paths)}
    n_links, broken = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            n_links += 1
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            place = unquote(parts.fragment)
            if not target.exists() or (
                place and target in pages and place not in pages[target].places
            ):
                broken.append(f"{path.relative_to(folder.resolve())}: {link}")
    return n_links, broken


def main():
    """Check the folder that is named, and say what is broken."""
    folder = Path(sys.argv[1])
    n_links, broken = check(folder)
    print(*broken, sep="\n", end="\n" if broken else "")
    print(f"{n_links} links within {folder}, {len(broken)} of them broken")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
