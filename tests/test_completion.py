"""Names are completed without importing a library, and are the names that the library has."""

import pytest

from lipcheck import completion


@pytest.mark.slow
def test_the_names_are_those_that_timm_registers():
    timm = pytest.importorskip("timm")
    assert completion.timm_names() == sorted(timm.list_models())


def test_prefixes_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights.pth").write_text("")
    (tmp_path / ".hidden").write_text("")
    assert {"timm:resnet18", "timm:resnet101"} <= set(completion.model_names("timm:resnet1"))
    assert {"demo", "resnet18"} <= set(completion.model_names(""))
    assert completion.model_names("./fo") == ["./folder/"]
    assert completion.model_names("folder/") == ["folder/weights.pth"]
    assert completion.model_names("missing/") == []
    assert completion.weights("") == ["pretrained", "random", "folder/"]
    assert list(completion.paths(".h")) == [".hidden"]
    assert completion.domains("b") == ["box:0,1", "ball:"]
    assert completion.domains("ball:0.5@folder/") == ["ball:0.5@folder/weights.pth"]
    assert completion.domains("ball:0.5") == []
