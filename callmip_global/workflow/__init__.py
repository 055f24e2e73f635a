"""The workflow: run directory, journal, submission, status, and what runs inside a job."""
