"""The documentation; ``make docs`` writes the parts that are made from the code."""
