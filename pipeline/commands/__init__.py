"""The subcommands of ``pneumoflow``, one file for each group: they read arguments, make one call, print a result."""
