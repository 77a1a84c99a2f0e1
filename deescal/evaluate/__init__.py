"""Compare models on the test scenarios of a dataset: generate, score, judge, test, report."""
