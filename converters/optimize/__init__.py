"""Rewriting a float graph: `normalise` into canonical form, `clean` into a smaller one."""
