"""The commands as functions: each has the name and the arguments it has on the command line."""
