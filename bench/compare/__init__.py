"""Strongroom beside other backup programs, on the same data, in one run: `make bench`.

    peers     fetches the others              live      the source, changed in place between generations
    datasets  trees, random file              programs  how each program is called
    disk      the disk image                  measure   one process: wall, CPU, peak memory
    rounds    the protocol, writes rows       results   rows, medians, ratios      goals  what must be reached
    report    Markdown                        chart     SVG

Only `rounds` and `peers` start programs; `results`, `goals`, `report` and `chart` are pure.
"""
