"""The curation job: what is to be done (plan), how it flows (job), where it is kept (store)."""
