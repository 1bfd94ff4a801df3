"""The command-line driver: flags, hosts, the work loop and its reports."""
