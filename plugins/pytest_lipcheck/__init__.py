"""The pytest plugin of lipcheck: bounds as test results. Loading it loads neither lipcheck nor torch."""
