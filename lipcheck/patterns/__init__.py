"""Patterns: several captured calls that are one map, recognised before the network is composed, one file a family.

Each `recognise(graph, steps)` replaces, in place, the step of the cluster's last node: its operator, and as `inputs`
the values that the cluster reads. The nodes before it keep their steps; where nothing else reads them, nothing comes of
them.
"""

from lipcheck.patterns import attention, clusters, normalisations

RECOGNISERS = (normalisations.recognise, attention.recognise, clusters.recognise)

__all__ = ["RECOGNISERS", "attention", "clusters", "normalisations"]
