"""From a name or a path to a model in memory: timm, torchvision, transformers, a factory, a checkpoint."""

from lipcheck.sources.loaded import LoadedModel
from lipcheck.sources.resolve import load

__all__ = ["LoadedModel", "load"]
