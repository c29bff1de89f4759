"""What every report's page must be: one well-formed file that needs no other."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

__all__ = ["pictures_of"]


class Checker(HTMLParser):
    """Collects links and checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def pictures_of(text: str) -> int:
    """Checks a page; returns how many embedded pictures it has, each of which can be opened."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(link.startswith(("data:image/", "#")) for link in checker.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    png = [link.split(",")[1] for link in checker.links if link.startswith("data:image/png;base64")]
    for data in png:
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).size > 1
    return len(png)
