"""What runs have found, for people to read: HTML pages, Markdown, CSV.

    records  ->  sheets, one for each run  ->  pages and texts

`flatmin compare` ends with the page of `comparison`; `flatmin report` sets several runs on one
page. Every page is one HTML file that opens without a network. Plotly is inside; the tables are
plain HTML and need no script.
"""
