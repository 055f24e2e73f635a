"""Job scripts and schedulers: tables of facts plus pure functions; nothing here runs a command."""
