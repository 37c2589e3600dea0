"""Every method of METHODS.md in its plainest form: numpy, one flat float64 vector, one loop each.

Nothing here imports flatmin. The equations come from the papers; agreement is shown by
`tests/methods/test_reference.py`.
"""
