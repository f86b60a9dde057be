"""`anyorder evidence`: what confirms or refutes the claims, from a clone of the repository."""

from __future__ import annotations

from pathlib import Path


def command(
    name: str,
    *,
    quick: bool = False,
    data: Path = Path("../shared/data"),
    folder: Path | None = None,
    output: Path | None = None,
) -> None:
    """Measure a claim again: a table with intervals, and a plot.

    The same command resumes what was interrupted. It needs a clone of the repository, in which docs/evidence.md lists
    the claims.

    Args:
        name: Of the evidence, such as any-order; a file in benchmarks/evidence that has findings.
        quick: Small sizes, about a minute: whether it runs, not what comes out.
        data: Folder with the public data.
        folder: For networks and parts that are finished; evidence/NAME unless given.
        output: Folder for table, plot and numbers; that for the parts unless given.
    """
    import importlib
    import sys

    from anyorder.cli._console import PlainConsole
    from anyorder.errors import UserError
    from anyorder.utils.files import whole_file

    place = _benchmarks()
    names = sorted(
        file.stem.replace("_", "-")
        for file in (place / "evidence").glob("*.py")
        if "\ndef findings(" in file.read_text(encoding="utf-8")
    )
    if name not in names:
        raise UserError(f"evidence {name!r} is unknown: give one of {', '.join(names)}.")
    sys.path.insert(0, str(place))
    module = importlib.import_module(f"evidence.{name.replace('-', '_')}")
    frame = importlib.import_module("evidence.frame")
    notes, console = PlainConsole(stderr=True), PlainConsole()
    parts = folder or Path("evidence") / (f"{name}-quick" if quick else name)
    study = frame.Study(name, data, parts, quick=quick, report=lambda line: notes.print(line, soft_wrap=True))
    study.require(sizes=module.QUICK if quick else module.FULL, data=data.resolve())
    findings = list(module.findings(study))
    results = output or parts
    results.mkdir(parents=True, exist_ok=True)
    words = ["anyorder", "evidence", name, *(["--quick"] if quick else [])]
    about = {"title": module.TITLE, "command": " ".join(words), "minutes": round(study.minutes, 1)}
    with whole_file(results / f"{name}.json", replace=True) as partial:
        partial.write_text(frame.record(findings, **about), encoding="utf-8")
    with whole_file(results / f"{name}.png", replace=True) as partial:
        frame.plot(module.TITLE, findings, partial)
    console.print(frame.table(findings), soft_wrap=True)
    notes.print(f"{study.minutes:.1f} minutes; numbers and plot: {results}", soft_wrap=True)


def _benchmarks() -> Path:
    """The folder of the clone that this is installed from, or that the command runs in."""
    from anyorder.errors import UserError

    here = Path(__file__).resolve()
    for root in (Path.cwd(), *Path.cwd().parents, here.parents[3]):
        if (root / "benchmarks" / "evidence" / "frame.py").is_file():
            return root / "benchmarks"
    raise UserError("evidence is in the repository, not in the package: run the command in a clone of it.")
