"""Pure risk mathematics: parameters, ledger, verdicts, plans, trigger bands. See README.md for the formulas."""
