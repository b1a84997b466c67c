"""The texts that speculation and start-up are measured on."""

from __future__ import annotations

START = [40, 41, 42, 43, 44, 45, 46, 47]
"""Token ids of the prompt whose first answer ends the measurement of a start; every vocabulary has them."""

CODE = """\
def mean(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)


def variance(values):
    centre = mean(values)
    total = 0
    for value in values:
        total = total + (value - centre) ** 2
    return total / len(values)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def spread(values):
    ordered = sorted(values)
    return ordered[-1] - ordered[0]
"""

PASSAGE = """\
The mill stands where the river bends, two miles below the village of Hartwell. It was built in 1742 by Thomas \
Aldous, who ground corn for eleven farms. His granddaughter Margaret added the second wheel in 1803, and the brick \
chimney dates from 1851, when steam replaced water in the dry months. The last miller, Edwin Prior, retired in 1936. \
The county bought the building in 1958 for four hundred pounds and opened it as a museum in 1961. Visitors may see the \
great spur wheel, the three pairs of millstones and the sack hoist, all of which still turn on the first Sunday of \
each month."""

EDIT = f"Rewrite this Python file with `total` renamed to `result`. Answer with the whole file.\n\n```python\n{CODE}```"
RETRIEVAL = f"{PASSAGE}\n\nQuote the passage above word for word, from its first sentence to its last."
SPECULATION = {"edit": EDIT, "quote": RETRIEVAL}
