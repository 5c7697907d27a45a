"""The documentation is true: its commands and its Python run in order, each page in a folder of its own.

What takes long, or needs what a reader has and a test has not, stands in a table with the reason. A block that
nothing here knows how to treat fails.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from pages import PAGES, ROOT, Block, blocks, commands, inline

from lipcheck import plugins
from lipcheck.cli import app, main
from lipcheck.policy_file import read_policy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Commands that take more than a few seconds, and what is run in their place where the words themselves cannot be.
PUBLISHED = "its published weights are downloaded; random ones here"
SLOW: dict[str, tuple[str, list[str]]] = {
    "lipcheck resnet50": (PUBLISHED, ["--weights", "random"]),
    "lipcheck resnet50 --certificate resnet50.safetensors": (PUBLISHED, ["--weights", "random"]),
    "lipcheck verify resnet50.safetensors resnet50": ("half a minute", []),
    "lipcheck seresnet50 --domain box:0,1": (PUBLISHED, ["--weights", "random"]),
    "lipcheck vit_tiny_patch16_224 --domain ball:0.5@cat.png": (PUBLISHED, ["--weights", "random"]),
    "lipcheck vit_tiny_patch16_224 --weights random --domain box:0,1": ("a quarter of a minute", []),
    "lipcheck torchvision:resnet18 --weights random": ("half a minute", []),
    "lipcheck checkpoint.pth --arch resnet50": ("half a minute", []),
    "lipcheck watch runs/today --arch resnet50": ("it goes on until Ctrl-C", ["--once", "--arch", "demo"]),
    "pytest --lip-save tests/baselines": ("a process that loads torch anew", []),
    "pytest --lip-compare tests/baselines": ("a process that loads torch anew", []),
    "pytest --lip-compare tests/baselines --lip-increase 1%": ("a process that loads torch anew", []),
}
# Programs that work for minutes to hours, or prepare environments: their options are looked up in their own parser.
PARSED = {
    "scripts/bench": "benchmarks.cli",
    "scripts/reproduce-training": "benchmarks.reproduction",
    "./scripts/test": None,
    "scripts/test": None,
}
# What a reader sees or writes, and no program of ours reads.
SHOWN = ("text",)


# What the reader of a page has


def _tiny(folder: Path, name: str = "model.safetensors") -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({"conv.weight": torch.randn(4, 3, 3, 3), "head.weight": torch.randn(5, 4)}, folder / name)


def _shards(folder: Path) -> None:
    _tiny(folder, "llama-shards/model-00001-of-00001.safetensors")
    places = ", ".join(f'"{name}": "model-00001-of-00001.safetensors"' for name in ("conv.weight", "head.weight"))
    text = f'{{"metadata": {{}}, "weight_map": {{{places}}}}}'
    (folder / "llama-shards" / "model.safetensors.index.json").write_text(text)


def _clothes(folder: Path) -> None:
    from safetensors.torch import save_file

    source = (ROOT / "examples" / "ci" / "clothes.py").read_text(encoding="utf-8")
    (folder / "clothes.py").write_text(source)
    names: dict[str, Any] = {"__name__": "clothes"}
    exec(compile(source, "clothes.py", "exec"), names)
    save_file(names["Clothes"]().state_dict(), folder / "version1.safetensors")


def _bert(folder: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder / "my-bert")


def _resnet(folder: Path) -> None:
    import timm
    import torch

    torch.save(timm.create_model("resnet50").state_dict(), folder / "checkpoint.pth")


def _cat(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (200, 120, 40)).save(folder / "cat.png")


def _project(folder: Path) -> None:
    (folder / "my_project").mkdir()
    (folder / "my_project" / "__init__.py").touch()
    layers = ", ".join(["nn.Conv2d(3, 3, 1)"] * 12)
    text = f"from torch import nn\n\n\ndef build():\n    return nn.Sequential({layers}).apply(small)\n\n\n"
    text += "def small(layer):\n    if isinstance(layer, nn.Conv2d):\n        nn.init.constant_(layer.weight, 0.1)\n"
    (folder / "my_project" / "model.py").write_text(text)
    (folder / "tests").mkdir()


def _demo(folder: Path) -> None:
    import shutil

    from lipcheck.sources.demo import WEIGHTS

    (folder / "runs" / "today").mkdir(parents=True)
    shutil.copy(WEIGHTS, folder / "runs" / "today" / "step_100.safetensors")


HAS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "docs/first-audit.md": (_clothes, _bert, _tiny),
    "docs/checkpoints.md": (_tiny, _shards),
    "docs/ci.md": (lambda folder: _tiny(folder, "checkpoints/model.safetensors"),),
    "docs/domains.md": (_cat,),
    "docs/pytest.md": (_project,),
    "docs/watch.md": (_demo,),
}
# Files that only slow commands read.
HAS_SLOWLY = {"docs/first-audit.md": (_resnet,), "docs/checkpoints.md": (_resnet,)}


def _training() -> dict[str, Any]:
    """A network that the trainers of the page take, with its data and options."""
    import torch
    import transformers

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: Any, labels: Any = None) -> Any:
            logits = self.layer(x)
            if labels is None:
                return logits
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, labels = torch.randn(8, 4), torch.arange(8) % 3
    arguments = transformers.TrainingArguments("out", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    return {
        "model": Classifier(),
        "arguments": arguments,
        "data": [{"x": one, "labels": label} for one, label in zip(x, labels, strict=True)],
        "loader": [(x, labels)],
        "criterion": torch.nn.functional.cross_entropy,
    }


# What the code of a page takes for granted.
NAMES: dict[str, Callable[[], dict[str, Any]]] = {"docs/frameworks.md": _training}


# How blocks are treated


class Page:
    """One page, read from top to bottom in a folder."""

    def __init__(self, name: str, folder: Path, *, slow: bool) -> None:
        self.name, self.folder, self.slow = name, folder, slow
        self.module = ModuleType(re.sub(r"\W", "_", name))
        vars(self.module).update(NAMES.get(name, dict)())

    def read(self) -> None:
        """Every block, in order."""
        for block in blocks(PAGES[self.name]):
            getattr(self, f"_{self._kind(block)}")(block.text)

    def _kind(self, block: Block) -> str:
        if block.language in ("sh", "python", "toml", "yaml", "indented"):
            return block.language
        assert block.language in SHOWN, f"{self.name}: how is a block of {block.language!r} to be treated?"
        return "shown"

    def _shown(self, text: str) -> None:
        assert not re.search(r"^(\$ |lipcheck [a-z]|pip |scripts/)", text, re.MULTILINE), "commands stand in ```sh"

    def _indented(self, text: str) -> None:
        """Formulas, and the second lines of items."""
        self._shown(text)

    def _sh(self, text: str) -> None:
        for words in commands(text):
            line = " ".join(words)
            check_command(words)
            if words[0].rpartition("/")[2] not in ("lipcheck", "pytest"):
                continue
            _, further = SLOW.get(line, ("", []))
            if line not in SLOW or self.slow:
                run([*words, *further])

    def _python(self, text: str) -> None:
        if re.search(r"^def test_", text, re.MULTILINE):
            (self.folder / "tests" / "test_page.py").write_text(text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, self.name, "exec"), vars(self.module))
        # What a block is said to print, where it says so of all that it prints.
        said = re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)
        if said:
            assert printed.getvalue().splitlines() == said

    def _toml(self, text: str) -> None:
        document = tomllib.loads(text)
        if "project" in document:
            assert list(document["project"]["entry-points"]) == [plugins.GROUP]
        else:
            (self.folder / "lipcheck.toml").write_text(text)
            assert read_policy(self.folder / "lipcheck.toml").layers

    def _yaml(self, text: str) -> None:
        check_workflow(yaml.safe_load(text))


def run(words: list[str]) -> None:
    """One command line in the working folder; the program itself, but for the start of a process."""
    if words[0] == "pytest":
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
        done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*words[1:]])
    # Exit code 3 is a verdict too: weights alone have no bound on a network.
    assert code in ((0, 3) if "audit" in words else (0,)), f"{words}: {printed.getvalue()}"


def check_command(words: list[str]) -> None:
    """Looks a command line up in the parser of its program."""
    program, given = words[0], words[1:]
    if program in ("lipcheck", "./scripts/lipcheck"):
        parse(given)
    elif program == "pip":
        check_extras(given)
    elif program == "pytest":
        assert all(
            not word.startswith("--") or word in ("--lip-save", "--lip-compare", "--lip-increase") for word in given
        )
    else:
        assert program in PARSED, f"how is {program} to be treated?"
        assert (ROOT / program).is_file()
        if PARSED[program] is not None:
            parser_of(PARSED[program])(given)


def parser_of(module: str) -> Callable[[list[str]], object]:
    """What parses the words of one of our scripts."""
    return importlib.import_module(module).parser().parse_args


def parse(given: list[str]) -> tuple[str, Any]:
    """The name of the command that lipcheck would run, and its parsed line."""
    group: Any = typer.main.get_command(app)
    with group.make_context("lipcheck", [*given]) as context:
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = group.resolve_command(context, rest)
        return name, command.make_context(name, rest, parent=context)


def check_extras(given: list[str]) -> None:
    """Whether what pip is told to install is lipcheck with extras that it has, or a package by its plain name."""
    assert given[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in given[1:]:
        if found := re.fullmatch(r"lipcheck\[([\w,]+)\]", word):
            assert set(found[1].split(",")) <= set(extras)
        else:
            assert re.fullmatch(r"\.|--no-deps|[\w-]+", word)


def check_workflow(document: Any) -> None:
    """The parts of workflows of GitHub, GitLab and pre-commit that are ours."""
    if isinstance(document, list):
        for one in document:
            check_workflow(one)
    elif isinstance(document, dict):
        if str(document.get("uses", "")).startswith("OWNER/lipcheck@"):
            action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
            assert set(document["with"]) <= set(action["inputs"])
        if "hooks" in document:
            known = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
            for hook in document["hooks"]:
                entry = hook.get("entry") or next(one["entry"] for one in known if one["id"] == hook["id"])
                check_command([*entry.split(), *hook.get("args", [])])
        for line in document.get("script", ()):
            check_command(commands(line)[0])
        for value in document.values():
            check_workflow(value)


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all pages: the same network is bounded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def page(bounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Page]]:
    """Opens a page in the folder of its reader, who keeps nothing of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LIPCHECK_NO_CACHE")
    monkeypatch.setenv("LIPCHECK_CACHE_DIR", str(bounds))
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    monkeypatch.setattr(plugins, "_LOADED", {})

    def opened(name: str, *, slow: bool = False) -> Page:
        for have in (*HAS.get(name, ()), *(HAS_SLOWLY.get(name, ()) if slow else ())):
            have(tmp_path)
        found = Page(name, tmp_path, slow=slow)
        monkeypatch.setitem(sys.modules, found.module.__name__, found.module)  # dataclasses look their module up
        return found

    yield opened
    for name in ("clothes", "my_project", "my_project.model"):
        sys.modules.pop(name, None)


def _has_code(name: str) -> bool:
    return any(block.language != "indented" for block in blocks(PAGES[name]))


def _slowly(name: str) -> bool:
    return any(
        " ".join(words) in SLOW
        for block in blocks(PAGES[name])
        if block.language == "sh"
        for words in commands(block.text)
    )


@pytest.mark.parametrize("name", [name for name in PAGES if _has_code(name)])
def test_a_page_runs(page, name):
    page(name).read()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if _slowly(name)])
def test_a_page_runs_with_what_takes_long(page, name):
    page(name, slow=True).read()


def test_what_is_slow_is_documented():
    lines = {
        " ".join(words)
        for text in PAGES.values()
        for block in blocks(text)
        if block.language == "sh"
        for words in commands(block.text)
    }
    assert [line for line in SLOW if line not in lines] == []


@pytest.mark.parametrize("name", PAGES)
def test_options_within_lines_exist(name):
    group: Any = typer.main.get_command(app)
    for span in inline(PAGES[name]):
        if not span.startswith("lipcheck "):
            continue
        words = span.split()[1:]
        command = group.commands.get(words[0], group.commands["MODEL"])
        known = {option for one in (*command.params, *group.params) for option in one.opts}
        assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == [], span


def test_scripts_that_are_named_exist():
    named = {found for text in PAGES.values() for found in re.findall(r"\bscripts/([a-z][a-z-]*)", text)}
    assert [name for name in sorted(named) if not (ROOT / "scripts" / name).is_file()] == []


def test_every_option_of_an_audit_is_in_the_readme():
    audit = typer.main.get_command(app).commands["MODEL"]
    names = [name for one in audit.params for name in one.opts if name.startswith("--")]
    assert [name for name in names if name not in PAGES["README.md"]] == []
