"""The notebook page: complete, and closed to hostile names."""

from dataclasses import replace
from html.parser import HTMLParser

import example_report

from lipcheck.renderers import notebook

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=y>&\x1b"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.open.append(tag)
        assert all(name == "open" for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_names_cannot_leave_their_cells():
    report = example_report.unbounded()
    layers = tuple(replace(layer, layer=ATTACK, kind=ATTACK, padding_mode=ATTACK) for layer in report.layers)
    unsupported = tuple(replace(entry, op=ATTACK, reason=ATTACK, layers=(ATTACK,)) for entry in report.unsupported)
    hostile = replace(
        report,
        model=replace(report.model, name=ATTACK, weights=f"random {ATTACK}", source=ATTACK, notes=(ATTACK,)),
        layers=layers,
        unsupported=unsupported,
        network=replace(report.network, reason=ATTACK),
    )
    page = notebook.to_html(hostile)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "img"}
    assert "\x1b" not in page


def test_the_page_has_every_layer_and_the_network():
    page = notebook.to_html(example_report.resnet())
    assert page.count("<tr>") == 3 + 1 + 1 + len(example_report.resnet().layers)
    assert "10<sup>18.77</sup>" in page
