"""What runs have found, for people to read: HTML pages, Markdown, CSV, the terminal.

    records  ->  sections, one for each run  ->  pages and texts

Start with `section.of_record`, which makes of a run everything that a report says about it;
`summary` and `statistics` compare methods, `paper` sets them beside the paper. `flatmin compare`
ends with the page of `comparison`; `flatmin report` sets several runs on one page (`html`) or
writes texts (`export`). Every page is one small HTML file that opens without a network: its script
draws the plots as SVG; the tables are plain HTML and need no script. `colours` says how each method
is drawn.
"""
