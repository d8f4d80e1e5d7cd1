"""Loads the datasets that test_hub_server.py puts on the hub: `datasets` as it is, from an empty cache."""

import datasets

csv = datasets.load_dataset("tester/csv")
assert csv["train"].to_dict() == {"text": ["good", "bad"], "label": [1, 0]}
parquet = datasets.load_dataset("tester/parquet", "rte", split="validation")
assert parquet.to_dict() == {"text": ["a", "b"], "label": [0, 1]}
print("loaded")
