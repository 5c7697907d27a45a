"""The Markdown: the verdict first, names that mean nothing to a reader of Markdown, and a size that is kept."""

import re
from dataclasses import replace

import example_report
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from renderers import judged

from lipcheck.renderers import markdown
from lipcheck.text import clean

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED = {"heading", "paragraph", "inline", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td"}
ALLOWED_INLINE = {"text", "code_inline", "strong_open", "strong_close", "em_open", "em_close", "text_special"}


def blocks(text):
    return READER.parse(text)


def tables(text):
    """Every table as rows of cells, each as a reader sees it."""
    found = []
    for token, following in zip(blocks(text), blocks(text)[1:], strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append("".join(child.content for child in following.children))
    return found


@pytest.mark.parametrize("report", judged.PLAIN.values(), ids=judged.PLAIN)
def test_there_is_a_row_a_layer(report):
    report = report()
    found = [table for table in tables(markdown.text(report)) if table[0][0] == "layer"]
    assert sum(len(table) - 1 for table in found) == len(report.layers)
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
        assert table[1][0].partition(" ×")[0] == report.layers[0].layer


def test_the_verdict_and_the_gravest_finding_come_first_then_the_changes_the_layers_and_the_network():
    text = markdown.text(judged.after(), judged.judgement())
    headings = re.findall(r"^##? (.*)$", text, re.MULTILINE)
    order = ["lipcheck: `example`", "Violated", "Difference to the baseline", "Layers", "Network", "Without a bound"]
    assert headings == [*order, "The run"]
    findings = re.findall(r"^- \*\*(\w+)\*\* `([^`]*)`", text, re.MULTILINE)
    assert findings[0] == ("error", "stem.conv")
    assert findings[-1][0] == "waived"
    assert "waived until 2030-01-01: known since v1" in text
    assert tables(text)[0][1] == ["stem.conv", "1.4999 … 1.5002", "1.9498 … 1.9502", "+30.1%", "+0.12", "raised"]


def test_without_a_judgement_there_is_no_verdict():
    text = markdown.text(example_report.unbounded())
    assert not re.search("passed|violated|incomplete", text, re.IGNORECASE)
    assert "**No finite bound**: aten.mul.Tensor in blocks.0.se.gate and 17 more" in text
    assert "figures say nothing about a trained network" in text


def test_of_a_network_that_is_not_claimed_no_figure_is_shown():
    text = markdown.text(judged.unclaimed())
    assert "No bound is claimed: the connections are unknown" in text
    assert "10^" not in text.partition("## Network")[2]


@pytest.mark.parametrize("attack", judged.ATTACKS)
def test_no_name_is_anything_but_text_or_code(attack):
    report, judgement = judged.hostile(attack)
    for most in (None, 4000, 1500):
        text = markdown.text(report, judgement, most=most)
        for token in blocks(text):
            assert re.sub("_(open|close)$", "", token.type) in ALLOWED
            for child in token.children or ():
                assert child.type in ALLOWED_INLINE
                if child.type == "text":
                    assert not re.search(r"@|#", child.content)
        assert text.replace("\n", "").isprintable()
    layers = next(table for table in tables(markdown.text(report, judgement)) if "operator" in table[0])
    assert {len(row) for row in layers} == {len(layers[0])}
    assert len(layers) == len(report.layers) + 1


@given(st.text(max_size=30))  # longer ones are cut
def test_prose_is_shown_as_it_is(words):
    (paragraph,) = (token for token in blocks(f"x {markdown.prose(words)}x") if token.children)
    assert {child.type for child in paragraph.children} <= ALLOWED_INLINE
    assert "".join(child.content for child in paragraph.children) == f"x {clean(words)}x"


@given(st.text(max_size=15))
def test_code_is_shown_as_it_is_but_for_bars_and_backticks(name):
    shown = tables(f"| a |\n|---|\n| {markdown.code(name)} |\n")[0][1][0]
    known = clean(name).replace("|", r"\x7c").replace("`", r"\x60")
    assert shown.strip() == known.strip()


def test_addresses_are_no_links_for_readers_that_look_for_them():
    shown = markdown.prose("see https://evil.example, www.evil.example and WWW.EVIL.example")
    assert not re.search(r"(?i)://|www\.", shown)


@pytest.mark.parametrize("most", [65_536, 262_144, 1_048_576])
def test_layers_are_left_out_with_a_note_where_there_is_no_room(most):
    report, judgement = judged.many(5000)
    text = markdown.text(report, judgement, most=most)
    assert 0.98 * most < len(text.encode()) < most
    left = {what: int(count) for count, what in re.findall(r"_(\d+) more (\w+) left out", text)}
    kept = len(re.findall(r"^\| `blocks", text, re.MULTILINE))
    assert kept + left["layers"] == len(report.layers)
    assert "## Network" in text
    assert len(re.findall(r"^- \*\*", text, re.MULTILINE)) + left.get("findings", 0) == len(judgement.findings)


@pytest.mark.parametrize("most", [-5, 0, 1, 20, 200, 500, 1000, 2000, 3000, 4000, 5000, 6000, 10_000])
def test_no_size_is_too_small(most):
    text = markdown.text(judged.after(), judged.judgement(), most=most)
    assert len(text.encode()) < max(1, most)
    assert text == "" or text.endswith("\n")


def test_findings_are_kept_before_changes_and_those_before_layers():
    whole = markdown.text(judged.after(), judged.judgement())
    for most in range(1500, len(whole.encode()) + 2, 211):
        text = markdown.text(judged.after(), judged.judgement(), most=most)
        left = [what for what in ("findings", "changes", "layers") if f"more {what} left out" in text]
        assert left in ([], ["layers"], ["changes", "layers"], ["findings", "changes", "layers"])


def test_a_long_name_costs_no_more_than_it_says():
    report = example_report.small()
    long = replace(report.layers[0], layer="x" * 100_000)
    assert len(markdown.text(replace(report, layers=(long,)))) < 3000
