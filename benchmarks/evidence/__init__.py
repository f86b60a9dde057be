"""One file for each claim, run by `anyorder evidence NAME`; see docs/evidence.md."""
