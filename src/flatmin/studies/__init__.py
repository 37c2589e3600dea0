"""Comparisons and tables: many training runs, stored, counted and told honestly.

Four rooms, each on the one before: `store` (rows and claims), `plan` (what there is to do), and on
these `run` (doing it) and `report` (what rows mean, for people). A cell is one training run; it is
addressed by the hash of everything that determines it, and has one row.
"""
