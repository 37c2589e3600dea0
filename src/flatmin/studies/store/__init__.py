"""Rows and claims: what is known by now, and who works on what.

`store.Store` is the place to start: a run's rows in memory and in its database, an Optuna study in
SQLite or PostgreSQL. `row` is a finished cell, `location` where a study is, `owner` which process
has a cell, `provenance` which code made a row, `files` writes whole files or none.
"""
