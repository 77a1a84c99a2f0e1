"""Bulk scoring: every row of a table asked of one or several models, offline through Ray Data and vLLM, or online."""
