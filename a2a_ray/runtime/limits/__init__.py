"""Rate limits and budgets: which call may start now."""
