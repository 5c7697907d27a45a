"""A small draw of mutated checkpoints; scripts/fuzz-checkpoints takes twenty thousand."""

from collections import Counter

from mutations import mutants, verdict


def test_mutated_checkpoints_are_refused_or_bounded(tmp_path):
    found = Counter((what, verdict(path)) for what, path in mutants(1, 150, tmp_path))
    kinds = {what for what, _ in found}
    assert kinds == {"header", "other", "bytes", "index", "config", "pickle"}
    assert sum(count for (_, said), count in found.items() if said == "bounded") > 20
    assert sum(count for (_, said), count in found.items() if said == "refused") > 40
