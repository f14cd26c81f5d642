"""The fault matrix, injected for real: `make chaos` runs every row and prints what became of the documents.

A row is a function in one of the modules here that `__main__` names:

    @row("SIGKILL of a worker, while it writes")
    def killed_writing(place: Place) -> Outcome:
        ...

It makes its corpus and its output in `place.folder`, injects its fault, and tells what came of it. `Outcome.of` counts
rows, dead letters, duplicates and lost rows from the files of an output alone. Bounds of the matrix that did not hold are
sentences in `Outcome.broken`.
"""
