"""What lipcheck is measured against: the published methods on the same layers, and the truth."""
