"""The command line. Commands are light modules; whatever is heavy is imported when it runs."""
