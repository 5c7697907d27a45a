"""What people write is read as they mean it, or refused in one line."""

import pytest

from lipcheck import options
from lipcheck.errors import UsageError


@pytest.mark.parametrize("text", ["3x224x200", "3×224×200", "3,224,200", " 3 , 224 , 200 ", "3X224X200"])
def test_input_sizes(text):
    assert options.input_size(text) == (3, 224, 200)


@pytest.mark.parametrize("text", ["", "x", "3x", "-3x2", "3x0", "1e3", "٣x٣", "3 224", "9" * 5000, "3x\x1b[31m"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="write it like 3x224x224"):
        options.input_size(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2GB", 2 * 10**9), ("2g", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512MiB", 2**29), ("64kb", 64_000), ("7", 7)],
)
def test_amounts_of_memory(text, amount):
    assert options.memory(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2PB", "1e9", "inf", "2 G B"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UsageError, match="write it like 2GB"):
        options.memory(text)


def test_domains():
    assert [options.domain(text) for text in ("box:0,1", "ball:1@x.png")] == ["box:0,1", "ball:1@x.png"]
    with pytest.raises(UsageError, match="did you mean box:0,1"):
        options.domain("bix:0,1")


def test_devices():
    assert [options.device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(UsageError, match="'cuda:x' is unknown"):
        options.device("cuda:x")
