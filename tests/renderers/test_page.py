"""The HTML page: what it says, that hostile names do nothing in it, and how it behaves in a browser."""

import base64
import datetime
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser

import example_report
import pytest

from lipcheck.bound import Bound
from lipcheck.policy import LayerBudget, Policy, Waiver, judge
from lipcheck.renderers import page

EXAMPLES = ["small", "unbounded", "constant", "resnet", "transformer"]
NAMES = (
    example_report.HOSTILE,
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "</style><svg onload=alert(1)>",
    "{% include '/etc/passwd' %}",
)


def hostile():
    """Every text of the report is hostile, in turn."""
    report, names = example_report.transformer(), itertools.cycle(NAMES)
    layers = tuple(replace(layer, layer=next(names), kind=next(names)) for layer in report.layers)
    layers = tuple(replace(layer, compared={next(names): layer.bound}, merged_with=next(names)) for layer in layers)
    return replace(
        report,
        model=replace(report.model, name=NAMES[1], weights=NAMES[2], notes=NAMES, output=NAMES[4]),
        layers=layers,
        network=replace(report.network, domain=NAMES[1], elsewhere=dict.fromkeys(NAMES, 0.1)),
        unsupported=tuple(replace(one, op=NAMES[1], layers=NAMES) for one in example_report.unbounded().unsupported),
        run=replace(report.run, notes=NAMES, versions={NAMES[1]: NAMES[2]}, unfinished=NAMES),
    )


def judged():
    """A report with findings of every sort, and a baseline from which one layer rose."""
    report = example_report.small()
    first = replace(report.layers[0], bound=Bound(1.0, 1.1, "before"), merged=None)
    baseline = replace(report, layers=(first, *report.layers[2:]))
    policy = Policy(
        layers=(
            LayerBudget("stem*", max_norm=1.0),
            LayerBudget("stages*", max_norm=2.0),
            LayerBudget("no*", max_norm=9),
        ),
        max_log10_bound=1.0,
        max_layer_increase=0.05,
        waivers=(Waiver("stages.0*", "retrained in May", datetime.date(2099, 1, 1)), Waiver("stages.1*", "known")),
        source="lipcheck.toml",
    )
    return report, judge(report, policy, baseline, today=datetime.date(2026, 1, 1))


def many(count=2000):
    """A report of `count` layers."""
    report = example_report.resnet()
    layers = [
        replace(report.layers[index % 54], layer=f"stages.{index // 100}.blocks.{index}.conv", share=1 / count)
        for index in range(count)
    ]
    return replace(report, layers=tuple(layers))


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_outside_the_page_is_named(name):
    text = page.text(getattr(example_report, name)())
    assert set(re.findall(r"\w+://[^\s\"'<]*", text)) <= {"http://www.w3.org/2000/svg"}
    for tag, attributes in Elements(text).found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"


def test_hostile_texts_make_no_element_and_no_attribute():
    elements = Elements(page.text(hostile()))
    assert {tag for tag, _ in elements.found} <= {tag for tag, _ in Elements(page.text(judged()[0])).found} | {
        *("section", "ul", "li", "code", "br", "small", "p", "b"),
    }
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    words = "".join(elements.words)
    assert "{{7*7}}" in words
    assert "</script><script>alert(1)</script>" in words
    assert not {"\x1b", "\u202e", "\x9b"} & set(words)


def test_a_hostile_judgement_is_only_text():
    report = hostile()
    policy = Policy(
        layers=(*(LayerBudget(f"{name}x", max_norm=1) for name in NAMES), LayerBudget("*", max_norm=0.1)),
        waivers=tuple(Waiver(name, name) for name in NAMES),
        source=NAMES[1],
    )
    text = page.text(report, judge(report, policy, replace(report, layers=report.layers[1:])))
    assert sum(tag == "script" for tag, _ in Elements(text).found) == 2
    assert "img" not in {tag for tag, _ in Elements(text).found}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_layer_has_a_row(name):
    report = getattr(example_report, name)()
    text = page.text(report)
    body = text[text.index('<table id="layers">') :]
    assert body.count('<th scope="row" class="path">') >= len(report.layers)
    ranks = json.loads(re.search(r'<script id="ranks"[^>]*>(.*?)</script>', text)[1])
    assert {len(column) for column in ranks} == {len(report.layers)}
    assert len(ranks) == body.count("data-key=")


def test_an_infinite_bound_says_why():
    text = page.text(example_report.unbounded())
    assert "No finite bound: aten.mul.Tensor in blocks.0.se.gate and 17 more" in text
    assert "figures say nothing about a trained network" in text
    assert "and 6 more" in text


def test_a_network_that_is_not_claimed_has_no_figures():
    report = example_report.unbounded()
    text = page.text(replace(report, network=replace(report.network, claimed=False, reason="weights alone")))
    assert "No bound on the network is claimed." in text
    assert "plain product" not in text


def test_a_report_without_layers_is_a_page():
    text = page.text(replace(example_report.constant(), layers=()))
    assert "no layer has a bound" in text
    assert 'id="layers"' not in text.split("<main>")[1].split("<script>")[0]


def test_the_verdict_names_findings_waivers_and_what_rose():
    report, judgement = judged()
    words = " ".join("".join(Elements(page.text(report, judgement)).words).split())
    assert judgement.outcome == "violated"
    assert "layer-norm-violated" in words
    assert "layer-norm-not-proven" in words
    assert "waived until 2099-01-01: retrained in May" in words
    assert "waived without an end: known" in words
    assert "Difference to the baseline" in words
    assert "8 layers: 1 raised, 1 added, 6 unchanged" in words
    first = words[words.index("surely rose by") :]
    assert first.index("raised") < first.index("added")
    assert "263%" in first  # 3.99951 / 1.1 - 1, rounded down


def test_a_page_without_a_judgement_has_no_verdict():
    assert 'id="verdict"' not in page.text(example_report.small())


def test_two_thousand_layers_are_quick_and_small():
    report = many()
    began = time.process_time()
    text = page.text(report, judge(report, Policy(layers=(LayerBudget("*", max_norm=0.1),)), report))
    assert time.process_time() - began < 2
    assert len(text.encode()) < 2_000_000
    assert "and 1800 more" in text


class Browser:
    """Chromium without a window, spoken to over its DevTools pipe; it keeps what was logged and requested."""

    def __init__(self, folder):
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
        command = f'exec chromium {flags} --user-data-dir="{folder}" about:blank 3<&{from_us} 4>&{to_us}'
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command], pass_fds=(from_us, to_us), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        os.close(from_us)
        os.close(to_us)
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.messages, self.requests, self.loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """What the browser answers."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 60)[0], "the browser is silent"
            read = os.read(self._read, 1 << 20)
            assert read, "the browser has gone"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method = message.get("method", "")
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(message["params"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, file, *, width=1280, dark=False, fragment=""):
        """The page at this width, loaded."""
        self.messages, self.requests, self.loaded = [], [], False
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=scheme)
        # From one address to itself with another fragment would be no loading.
        for url in ("about:blank", file.as_uri() + fragment):
            self.loaded = False
            self.call("Page.navigate", url=url)
            while not self.loaded:
                self._next()
        self.requests = [url for url in self.requests if url != "about:blank"]

    def value(self, expression):
        """What a JavaScript expression comes to in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """A key, down and up."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": 13 if key == "Enter" else 32}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, **code, **(text if kind == "keyDown" else {})
            )

    def picture(self, file):
        """The whole page as an image."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(image))

    def close(self):
        """Ends it."""
        os.write(self._write, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def written(folder, report, judgement=None):
    file = folder / "report.html"
    file.write_text(page.text(report, judgement), encoding="utf-8")
    return file


FIRST_NAMES = '[...document.querySelectorAll("#layers tbody tr:not([hidden]) th")].map(cell => cell.textContent)'


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", [*EXAMPLES, "hostile", "judged", "many"])
def test_a_browser_shows_it_without_a_message_or_a_request(browser, tmp_path, name, width, dark):
    made = {"hostile": hostile, "judged": judged, "many": many}.get(name) or getattr(example_report, name)
    report = made()
    file = written(tmp_path, *(report if isinstance(report, tuple) else (report,)))
    browser.open(file, width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("!document.querySelector('.filter').hidden"), "the script did not run"
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert browser.value("getComputedStyle(document.querySelector('.chart .paper')).fill") == paper
    shown = browser.value("[...document.querySelectorAll('.chart')].filter(one => one.clientWidth).length")
    assert shown == 2
    if folder := os.environ.get("LIPCHECK_SCREENSHOTS"):
        os.makedirs(folder, exist_ok=True)
        browser.picture(tmp_path / "page.png")
        shutil.copy(tmp_path / "page.png", f"{folder}/{name}-{width}-{'dark' if dark else 'light'}.png")
    assert browser.messages == []
    assert browser.requests == [file.as_uri()]


def test_no_letters_of_a_chart_lie_outside_it(browser, tmp_path):
    for name, width in itertools.product(EXAMPLES, (1280, 390)):
        browser.open(written(tmp_path, getattr(example_report, name)()), width=width)
        outside = browser.value(
            """[...document.querySelectorAll(".chart")].filter(one => one.clientWidth).flatMap(one => {
              const paper = one.getBoundingClientRect();
              return [...one.querySelectorAll("text")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < paper.left - 1 || box.right > paper.right + 1 || box.bottom > paper.bottom + 1;
              }).map(text => text.textContent);
            })"""
        )
        assert outside == [], (name, width)


def test_headings_sort_by_click_and_by_enter(browser, tmp_path):
    report = example_report.small()
    browser.open(written(tmp_path, report))
    in_order = [layer.layer for layer in sorted(report.layers, key=lambda layer: -layer.bound.upper)]
    in_the_network = browser.value(FIRST_NAMES)
    browser.value("document.querySelector('[data-key=upper] button').click()")
    assert browser.value("document.querySelector('[data-key=upper]').ariaSort") == "descending"
    names = browser.value(FIRST_NAMES)
    assert [name[:8] for name in names] == [name[:8].replace("\x1b", "\\x1b")[:8] for name in in_order]
    browser.value("document.querySelector('[data-key=upper] button').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('[data-key=upper]').ariaSort") == "ascending"
    assert browser.value(FIRST_NAMES)[0] == "decoder.up"
    # The third time brings the network's order back, and the address forgets the sorting.
    browser.press("Enter")
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 0
    assert browser.value(FIRST_NAMES) == in_the_network
    assert "sort" not in browser.value("location.hash")
    assert browser.value("document.activeElement.parentElement.dataset.key") == "upper"
    # What has no number comes last in both directions.
    browser.value("document.querySelector('[data-key=merged] button').click()")
    browser.value("document.querySelector('[data-key=merged] button').click()")
    assert browser.value(FIRST_NAMES)[0] == "stem.conv"
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.messages == []


def test_the_filter_and_the_address_choose_rows(browser, tmp_path):
    file = written(tmp_path, example_report.small())
    browser.open(file, fragment="#sort=-lower&filter=stages dwconv")
    assert browser.value(FIRST_NAMES) == ["stages.0.blocks.0.token_mixer.depthwise ×2"]
    assert browser.value("document.getElementById('count').textContent") == "1 of 8 rows"
    browser.value("(box => {box.value = ''; box.dispatchEvent(new Event('input'))})(document.getElementById('filter'))")
    assert len(browser.value(FIRST_NAMES)) == 8
    assert browser.value("location.hash") == "#sort=-lower"
    browser.open(file, fragment="#sort=__proto__&filter=<script>")
    assert browser.value(FIRST_NAMES) == []
    assert browser.messages == []
