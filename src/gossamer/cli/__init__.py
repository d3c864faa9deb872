"""The command line: one module a job, assembled here."""
